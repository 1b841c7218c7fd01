"""A language model that generates answers, and the maths of improving it."""

from policy.errors import ModelError

__all__ = ["ModelError"]
