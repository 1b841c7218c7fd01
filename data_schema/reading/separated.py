"""Rows of .csv and .tsv files."""

import csv
import logging
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from data_schema.errors import DataError
from data_schema.reading.streams import LONGEST_ROW, NumberedRows, decoded, raw_lines

log = logging.getLogger("triptych.data")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
NAME = re.compile(r"\w[\w ()/-]*")  # what a column is called, without another separator


def read_separated(path: Path, separator: str) -> NumberedRows:
    """Rows of a file with a header. Another separator than `separator` is used if the header has that one only."""
    csv.field_size_limit(LONGEST_ROW)  # the default refuses cells over 128 kB; a quote that never ends must not pass
    lines = (decoded(raw, path, row) for row, raw in raw_lines(path))
    first = next(lines, None)
    declared = first and re.fullmatch(r"sep=(.)\s*", first)  # a line by which Excel knows the separator
    if declared:
        separator, first = declared[1], next(lines, None)
    if first is None:
        return
    reader = csv.reader(chain([first], lines), delimiter=_separator_of(first, separator, path), strict=True)
    names: list[str] | None = None
    row = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{row + 1}: broken CSV ({error}); check its quotes", reason="broken CSV") from None
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if names is None:
            names = _header([name.strip() for name in cells], path)
            continue
        row += 1
        if len(cells) != len(names):
            yield (
                row,
                DataError(
                    f"{path}:{row}: {len(cells)} cells, but the header has {len(names)} ({', '.join(names)});"
                    " quote cells that contain separators",
                    reason="cells and header differ in number",
                ),
            )
        else:
            yield row, dict(zip(names, cells, strict=True))


def _header(names: list[str], path: Path) -> list[str]:
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise DataError(f"{path}:1: the header has the column '{twice}' twice; rename one", field=twice)
    return names


def _separator_of(first: str, usual: str, path: Path) -> str:
    """`usual`; if the header has a single column with it, another separator that makes names of it."""
    try:
        columns = {mark: next(csv.reader([first], delimiter=mark), []) for mark in {usual, *SEPARATORS}}
    except csv.Error:  # reported once the header is read
        return usual
    if len(columns[usual]) > 1:
        return usual
    for mark in SEPARATORS:
        if len(columns[mark]) > 1 and all(NAME.fullmatch(name.strip()) for name in columns[mark]):
            log.info("%s: its cells are separated by %s", path, SEPARATORS[mark])
            return mark
    return usual


def _tsv_cells(raw: bytes, path: Path, row: int) -> list[str]:
    return decoded(raw, path, row).rstrip("\r\n").split("\t")


def first_tsv_cells(path: Path) -> list[str]:
    """The cells of a .tsv's first line, which is a header or a row. Empty if it cannot be read."""
    try:
        return next((_tsv_cells(raw, path, row) for row, raw in raw_lines(path)), [])
    except DataError:
        return []


def read_tsv_without_header(path: Path, header: Sequence[str]) -> NumberedRows:
    """Rows of a .tsv without a header line (one equal to `header` is skipped). Quotes in cells are literal."""
    for row, raw in raw_lines(path):
        try:
            cells = _tsv_cells(raw, path, row)
            if row == 1 and cells == list(header):
                continue
            if len(cells) != len(header) and cells != [""]:
                raise DataError(
                    f"{path}:{row}: {len(cells)} cells, but there must be {len(header)} ({', '.join(header)});"
                    " use tabs only between cells",
                    reason="wrong number of cells",
                )
            if cells != [""]:
                yield row, dict(zip(header, cells, strict=True))
        except DataError as error:
            yield row, error
