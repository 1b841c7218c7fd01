"""The one error that users of the store can cause and cure."""

from __future__ import annotations


class StoreError(ValueError):
    """A checkpoint, name or store is not as it should be; one line that says what, what is there, and the cure."""
