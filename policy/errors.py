"""The error a user can cause through a model, its tokenizer or what it is fed."""


class ModelError(ValueError):
    """One line: what is wrong, what is there, and the cure."""
