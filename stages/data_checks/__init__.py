"""Checks of data, templates and tokenizers that several callers share."""
