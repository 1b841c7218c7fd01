"""Read each type of data file, one row at a time. Every type except .zip may also be gzipped."""

import codecs
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from data_schema.errors import DataError
from data_schema.records import describe

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row | DataError]]


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if it is gzipped. Raises DataError for a broken gzip file."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
            yield stream  # type: ignore[misc]  # GzipFile is an IO[bytes] in all but its type
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file ({error}); download it again, or remove .gz from its name") from None


def _decode(raw: bytes, path: Path, row: int, member: str | None = None) -> str:
    """The text of a row, or of a whole `member` of an archive."""
    if row == 1 or member:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        whose = f"{member} is " if member else ""
        raise DataError(
            f"{path}:{row}: {whose}not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1});"
            f" convert it, for example: iconv -f ISO-8859-1 -t UTF-8 {member or path.name}",
            reason="not UTF-8",
        ) from None


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    # Split bytes, not text: U+2028 inside a JSON string must not end a line.
    with _open(path) as stream:
        yield from enumerate(stream, start=1)


def _object_or_error(value: object, path: Path, row: int) -> Row | DataError:
    if isinstance(value, dict):
        return value
    return DataError(
        f"{path}:{row}: a row must be a JSON object, found {describe(value)}", reason="row is not an object"
    )


# The errors of json. Only JSONDecodeError means invalid JSON: the others are a number of over 4,300 digits, and nesting
# deeper than Python's stack.
UNREADABLE_JSON = (ValueError, RecursionError)


def _json_lines(path: Path) -> NumberedRows:
    for row, raw in _raw_lines(path):
        try:
            line = _decode(raw, path, row)
            if line.strip():
                yield row, _object_or_error(json.loads(line), path, row)
        except DataError as error:
            yield row, error
        except UNREADABLE_JSON as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield row, DataError(f"{path}:{row}: broken JSON ({_what(error)}{where})", reason="broken JSON")


def _what(error: ValueError | RecursionError) -> str:
    """The message of json's error, without its advice."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _read_jsonl(path: Path) -> NumberedRows:
    """Read JSON lines, or an array in a file named .jsonl."""
    with _open(path) as stream:
        start = stream.read(64)
    is_array = start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    yield from _read_json(path) if is_array else _json_lines(path)


def _read_json(path: Path) -> NumberedRows:
    """Read an array of objects, or JSON lines or a single object in a file named .json."""
    with _open(path) as stream:
        raw = stream.read()
    if raw.removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"[":
        try:
            only = json.loads(raw.decode("utf-8-sig"))
        except UNREADABLE_JSON:
            yield from _json_lines(path)
        else:
            yield 1, _object_or_error(only, path, 1)
        return
    yield from _array_items(_decode(raw, path, 1), path)


def _array_items(text: str, path: Path) -> NumberedRows:
    """Decode the items one by one, so that a large array is never in memory as Python objects."""
    decoder = json.JSONDecoder()

    def after_space(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def broken(what: str, at: int) -> DataError:
        line = text.count("\n", 0, at) + 1
        return DataError(f"{path}:{row}: broken JSON array ({what}, line {line}); fix it", reason="broken JSON")

    at, row = after_space(text.index("[") + 1), 1
    ended = text[at : at + 1] == "]"
    while not ended:
        try:
            value, end = decoder.raw_decode(text, at)
        except UNREADABLE_JSON as error:
            raise broken(_what(error), error.pos if isinstance(error, json.JSONDecodeError) else at) from None
        yield row, _object_or_error(value, path, row)
        at = after_space(end)
        ended = text[at : at + 1] == "]"
        if not ended:
            if text[at : at + 1] != ",":
                raise broken("neither ',' nor ']' after the item", at)
            at, row = after_space(at + 1), row + 1
    if text[at + 1 :].strip():
        raise broken("more text after the array", after_space(at + 1))


def _read_separated(path: Path, separator: str) -> NumberedRows:
    import csv

    csv.field_size_limit(2**31 - 1)  # the default refuses cells over 128 kB
    lines = (_decode(raw, path, row) for row, raw in _raw_lines(path))
    reader = csv.DictReader(lines, delimiter=separator, strict=True)
    rows = enumerate(reader, start=1)
    row = 0
    while True:
        try:
            row, cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{row + 1}: broken CSV ({error}); check its quotes", reason="broken CSV") from None
        names = list(reader.fieldnames or [])
        if None in cells or None in cells.values():
            n_cells = len(names) + len(cells.get(None) or ()) - sum(value is None for value in cells.values())
            yield (
                row,
                DataError(
                    f"{path}:{row}: {n_cells} cells, but the header has {len(names)} ({', '.join(names)});"
                    " quote cells that contain separators",
                    reason="cells and header differ in number",
                ),
            )
        else:
            yield row, cells


def _tsv_cells(raw: bytes, path: Path, row: int) -> list[str]:
    return _decode(raw, path, row).rstrip("\r\n").split("\t")


def first_tsv_cells(path: Path) -> list[str]:
    """The cells of a .tsv's first line, which is a header or a row. Empty if it cannot be read."""
    try:
        return next((_tsv_cells(raw, path, row) for row, raw in _raw_lines(path)), [])
    except DataError:
        return []


def read_tsv_without_header(path: Path, header: Sequence[str]) -> NumberedRows:
    """Rows of a .tsv without a header line (one equal to `header` is skipped). Quotes in cells are literal."""
    for row, raw in _raw_lines(path):
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


def _read_text(path: Path) -> NumberedRows:
    for row, raw in _raw_lines(path):
        try:
            text = _decode(raw, path, row).rstrip("\r\n")
            if text.strip():
                yield row, {"text": text}
        except DataError as error:
            yield row, error


def _read_parquet(path: Path) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(path) as stream:
        packed = path.name.lower().endswith(".gz")
        try:
            batches = pq.ParquetFile(io.BytesIO(stream.read()) if packed else stream).iter_batches(batch_size=1024)
            rows: Iterable[Row] = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from enumerate(rows, start=1)
        except (pa.ArrowException, OSError) as error:  # OSError: a page cannot be decompressed
            raise DataError(f"{path}: broken Parquet file ({str(error).splitlines()[0]}); write it again") from None


def _read_zip(path: Path) -> NumberedRows:
    """The .txt files in a .zip, one row each; other files in it are ignored."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.lower().endswith(".txt")]
            if not members:
                raise DataError(f"{path}: contains no .txt file; unpack it and give its files")
            for row, member in enumerate(members, start=1):
                try:
                    text = _decode(archive.read(member), path, row, member)
                    if text.strip():
                        yield row, {"text": text.replace("\r\n", "\n"), "file": member}
                except DataError as error:
                    yield row, error
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); download it again, or unpack it by hand") from None


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".zip": _read_zip,
}
