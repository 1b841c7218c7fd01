"""Readers that go by what columns mean, whatever a data set calls them."""
