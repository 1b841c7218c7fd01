"""What is printed to the screen: tables that a file keeps whole, and control characters that can do no harm."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from data_schema.errors import printable

WIDE = 500  # columns of a table in a file or a pipe: nothing is wrapped at 80


class Screen(Console):
    """A console that shows texts as they are: `[bold]` and `:smile:` stay, control characters become visible. A `Text`
    is printed as it is: whoever makes one from data makes it `printable` first."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class PlainLines(logging.Formatter):
    """Log lines in which control characters are visible."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def screen() -> Console:
    """A console on stdout, as wide as the terminal, or WIDE where there is none and COLUMNS is not set."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Screen(width=None if narrow else WIDE, highlight=False, markup=False, emoji=False)


def as_json(value: object, indent: int | None = None) -> str:
    """The value as JSON, in ASCII, so that no text in it can do anything on a terminal."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def visible(text: str) -> str:
    """`printable`, with line ends and tabs as \\n and \\t too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def one_line(text: str, longest: int | None = None) -> str:
    """The text on one line, control characters visible, cut to `longest` characters."""
    line = visible(re.sub(r"[ \t\r\n]+", " ", text).strip())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 3]}..."
