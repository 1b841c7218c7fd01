"""What the user can mend: the command line prints these as one line and exits with 2; anything else keeps its
traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A recipe or a command line that cannot be run: the message names the key, what is there and the cure."""
