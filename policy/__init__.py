"""A language model that answers, and the maths that improves it."""

from policy.errors import ModelError

__all__ = ["ModelError"]
