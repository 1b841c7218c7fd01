"""Rows of JSON: lines, an array, or a single object. No more than a row of an array is in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

from data_schema.errors import DataError
from data_schema.reading.streams import (
    LONGEST_ROW,
    START,
    NumberedRows,
    Row,
    decoded,
    opened,
    raw_lines,
    refuse_other_content,
    too_long,
)
from data_schema.records import describe

# The errors of json. Only JSONDecodeError means invalid JSON: the others are a number of over 4,300 digits, and nesting
# deeper than Python's stack.
UNREADABLE = (ValueError, RecursionError)
LARGEST_OBJECT = 2**28  # bytes, 256 MiB, of an object that is a whole file, such as a task with its instances
DEEPEST = 200  # nested lists and objects; code that reads the rows calls itself for each
CHUNK = 2**20  # characters of an array that are read at a time
LONGEST_WORD = 16  # characters; a number or a literal that is cut off fails less than this before the end
SPACE = re.compile(r"[ \t\r\n]*")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise DataError(f"the key '{twice}' is given twice; keep one", field=twice, reason="a key is given twice")
    return row


def _constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not JSON; write null, or a finite number", reason="NaN or Infinity")


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
LAX = json.JSONDecoder()  # finds the end of a row that the strict one refuses


def _checked(value: Any, text: str) -> Any:
    """The value that was read from `text`. Raises DataError if it is nested too deeply."""
    if text.count("[") + text.count("{") > DEEPEST:
        level, depth = [value], 0
        while level := [item for parent in level for item in _items(parent)]:
            depth += 1
            if depth > DEEPEST:
                raise DataError(f"lists and objects are nested more than {DEEPEST} deep; flatten them")
    return value


def _items(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inside if isinstance(item, dict | list))


def _object_or_error(value: object, path: Path, row: int) -> Row | DataError:
    if isinstance(value, dict):
        return value
    return DataError(
        f"{path}:{row}: a row must be a JSON object, found {describe(value)}", reason="row is not an object"
    )


def _placed(error: DataError, path: Path, row: int) -> DataError:
    text = str(error)
    text = text if text.startswith(f"{path}:") else f"{path}:{row}: {text}"
    return DataError(text, field=error.field, reason=error.reason)


def _what(error: ValueError | RecursionError) -> str:
    """The message of json's error, without its advice."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _json_lines(path: Path) -> NumberedRows:
    for row, raw in raw_lines(path):
        try:
            line = decoded(raw, path, row)
            if line.strip():
                yield row, _object_or_error(_checked(STRICT.decode(line), line), path, row)
        except DataError as error:
            yield row, _placed(error, path, row)
        except UNREADABLE as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield row, DataError(f"{path}:{row}: broken JSON ({_what(error)}{where})", reason="broken JSON")


def _is_array(path: Path) -> bool:
    with opened(path) as stream:
        start = stream.read(START)
    refuse_other_content(start, path)
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_jsonl(path: Path) -> NumberedRows:
    """Read JSON lines, or an array in a file named .jsonl."""
    yield from _array(path) if _is_array(path) else _json_lines(path)


def read_json(path: Path) -> NumberedRows:
    """Read an array of objects, or JSON lines or a single object in a file named .json."""
    if _is_array(path):
        yield from _array(path)
    elif _has_a_row(path, 1):
        yield from _json_lines(path)
    else:
        yield from _single(path)


def _has_a_row(path: Path, n_lines: int) -> bool:
    """Whether one of the first lines with text is a JSON object."""
    lines = (raw for _, raw in raw_lines(path) if raw.removeprefix(codecs.BOM_UTF8).strip())
    for raw in islice(lines, n_lines):
        try:
            if isinstance(json.loads(raw.decode("utf-8-sig")), dict):
                return True
        except UNREADABLE:
            pass
    return False


def _single(path: Path) -> NumberedRows:
    with opened(path) as stream:
        raw = stream.read(LARGEST_OBJECT + 1)
    if len(raw) > LARGEST_OBJECT:
        raise DataError(
            f"{path}: is one JSON object of more than {LARGEST_OBJECT >> 20} MiB; write one row per line (JSON lines)"
        )
    try:
        text = decoded(raw, path, 1)
        row = _object_or_error(_checked(STRICT.decode(text), text), path, 1) if text.strip() else None
    except UNREADABLE as error:
        if _has_a_row(path, 16):  # JSON lines whose first one is broken
            yield from _json_lines(path)
        elif isinstance(error, DataError):
            yield 1, _placed(error, path, 1)
        else:
            line, where = 1, ""
            if isinstance(error, json.JSONDecodeError):
                line, where = error.lineno, f" at column {error.colno}"
            raise DataError(
                f"{path}:{line}: broken JSON ({_what(error)}{where}); is the file complete?", reason="broken JSON"
            ) from None
    else:
        if row is not None:
            yield 1, row


class _Window:
    """The part of a file that is being parsed. What is before `at` has been read."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.path, self.row = path, 1
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8-sig")().decode

    def grow(self) -> None:
        chunk = self._stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not chunk
        self.line += self.text.count("\n", 0, self.at)
        try:
            self.text, self.at = self.text[self.at :] + self._decode(chunk, self.ended), 0
        except UnicodeDecodeError:
            decoded(chunk, self.path, self.row)  # raises, unless a character is cut off at a chunk's end
            raise DataError(f"{self.path}:{self.row}: not UTF-8; convert it", reason="not UTF-8") from None

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def item(self) -> Any:
        """The next item of the array; a DataError for one that is complete but refused."""
        while True:
            try:
                value, end = self._parsed()
            except UNREADABLE as error:
                if self.ended or not self._may_go_on(error):
                    raise
            else:
                if end < len(self.text) or self.ended:  # else a number could go on
                    self.at = end
                    return value
            if len(self.text) - self.at > LONGEST_ROW:
                raise too_long(self.path, self.row)
            self.grow()

    def _parsed(self) -> tuple[Any, int]:
        try:
            value, end = STRICT.raw_decode(self.text, self.at)
            return _checked(value, self.text[self.at : end]), end
        except DataError as error:
            _, end = LAX.raw_decode(self.text, self.at)
            return _placed(error, self.path, self.row), end

    def _may_go_on(self, error: ValueError | RecursionError) -> bool:
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_WORD
        )

    def broken(self, what: str, at: int) -> DataError:
        line = self.line + self.text.count("\n", 0, at)
        return DataError(
            f"{self.path}:{self.row}: broken JSON array ({what}, line {line}); fix it", reason="broken JSON"
        )


def _array(path: Path) -> NumberedRows:
    with opened(path) as stream:
        window = _Window(stream, path)
        window.peek()
        window.at += 1
        ended = window.peek() == "]"
        while not ended:
            try:
                value = window.item()
            except DataError:
                raise
            except UNREADABLE as error:
                at = error.pos if isinstance(error, json.JSONDecodeError) else window.at
                raise window.broken(_what(error), at) from None
            yield window.row, value if isinstance(value, DataError) else _object_or_error(value, path, window.row)
            ended = (mark := window.peek()) == "]"
            if not ended:
                if mark != ",":
                    raise window.broken("neither ',' nor ']' after the item", window.at)
                window.at += 1
                window.row += 1
                window.peek()
        window.at += 1
        if window.peek():
            raise window.broken("more text after the array", window.at)
