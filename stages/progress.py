"""Progress on stderr: a bar on a terminal; in a log file plain lines, one from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30.0  # between two lines in a log file


def progress(
    items: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0
) -> Any:
    """A bar around `items`, or one to be advanced with `update(n)` up to `total`; counting starts at `initial`."""
    if sys.stderr.isatty():
        return tqdm(items, desc=desc, unit=unit, total=total, initial=initial, dynamic_ncols=True)
    if total is None and isinstance(items, Sized):
        total = len(items)
    return PlainProgress(items, desc, unit, total, initial, sys.stderr)


class PlainProgress:
    """Takes the place of tqdm where its carriage returns would put all states of a bar on one endless line."""

    def __init__(
        self, items: Iterable[Any] | None, desc: str, unit: str, total: int | None, initial: int, stream: TextIO
    ) -> None:
        self.items, self.desc, self.unit, self.total, self.stream = items, desc, unit, total, stream
        self.n = self.initial = initial
        self.values = ""
        self.started = self.last = time.monotonic()
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or ():
            yield item
            self.update(1)
        self.close()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int) -> None:
        self.n += n
        if time.monotonic() - self.last >= SECONDS:
            self.write()

    def set_postfix(self, **values: str) -> None:
        """Values for the end of the next line."""
        self.values = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        """Write the last line, once."""
        if not self.closed:
            self.closed = True
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        took, done = self.last - self.started, self.n - self.initial
        of = f"{self.n}" if self.total is None else f"{self.n} of {self.total}"
        left = ""
        if self.total is not None and done and self.n < self.total:
            left = f", {tqdm.format_interval(took / done * (self.total - self.n))} left"
        plural = "" if self.n == self.total == 1 else "s"
        text = f"{self.desc}: {of} {self.unit}{plural} in {tqdm.format_interval(took)}{left}{self.values}\n"
        self.stream.write(text)
        self.stream.flush()
