"""Readers of the published data formats, one file per family."""
