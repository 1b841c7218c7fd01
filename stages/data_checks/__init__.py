"""Checks of data, templates and tokenizers that stages, runner and tools share."""
