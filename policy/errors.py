"""The error for faults in a model, its tokenizer or its inputs that the user can fix."""

import traceback
from pathlib import Path


class ModelError(ValueError):
    """One line that says what is wrong, what was found and how to fix it."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line; its type if it says nothing."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def raised(error: BaseException) -> str:
    """Describe an exception from a user's function, and where it was raised, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(place.filename).name}:{place.lineno})"
