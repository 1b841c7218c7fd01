"""The published data formats and how their rows become records, a file for each family."""
