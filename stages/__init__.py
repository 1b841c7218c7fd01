"""The steps of the paper, a folder each, and what several of them share."""
