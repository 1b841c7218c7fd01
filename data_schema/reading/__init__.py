"""Readers of data files of every type, one row at a time."""
