"""Errors that the user can fix. The command line prints them in one line and exits with 2; others show a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in a recipe or on the command line; the message names the setting, its value and the fix."""
