"""The steps of the paper, one folder each, and the code that several of them share."""
