"""StoreError, the one error of the checkpoint store."""

from __future__ import annotations


class StoreError(ValueError):
    """A checkpoint, name or store is invalid: one line that says what is wrong, what was found and how to fix it."""
