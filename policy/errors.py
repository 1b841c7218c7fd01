"""The error a user can cause through a model, its tokenizer or what it is fed."""

import traceback
from pathlib import Path


class ModelError(ValueError):
    """One line: what is wrong, what is there, and the cure."""


def raised(error: Exception) -> str:
    """What somebody else's function raised, and where, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(place.filename).name}:{place.lineno})"
