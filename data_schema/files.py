"""Rows in files and records in files: JSONL, JSON, CSV, TSV, Parquet and plain text, each also gzipped."""

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from data_schema.errors import DataError
from data_schema.records import KIND_NAMES, R, Record, describe, from_dict, to_dict
from data_schema.table import from_row, rows_to_table

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row | DataError]]


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) of a file, one at a time. In JSONL and .txt the row number is the line number.

    Raises DataError naming file, row and cure at the first row that cannot be read.
    """
    for number, row in rows_or_errors(path):
        if isinstance(row, DataError):
            raise row
        yield number, row


def rows_or_errors(path: str | Path) -> NumberedRows:
    """As `read_rows`, with a DataError in the place of a row that cannot be read while the next ones can.

    Raises DataError, at the call, for a missing file or an unknown ending, and where nothing after can be read.
    """
    path = Path(path)
    check_is_file(path)
    ending = file_ending(path.name)
    if ending is None:
        raise DataError(f"{path}: cannot tell the file type; name it with one of {', '.join(READERS)} (or those + .gz)")
    return READERS[ending](path)


def file_ending(name: str) -> str | None:
    """The ending that says how to read a file of this name, without .gz; None if there is none."""
    ending = Path(name.lower().removesuffix(".gz")).suffix
    return ending if ending in READERS else None


def check_is_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if file_ending(p.name))
        raise DataError(f"{path}: is a folder; give one file of it ({_few(inside) or 'none can be read'})")
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file, nor is there a folder {folder.absolute()}; check the path")
    import difflib

    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or [n for n in names if file_ending(n)]
    raise DataError(f"{path}: no such file; in {folder.absolute()} there is {_few(near) or 'no data file'}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. A broken gzip file is a DataError."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again, or drop .gz from its name") from None


def _decode(raw: bytes, path: Path, row: int) -> str:
    if row == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{row}: not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1});"
            f" convert it, for example: iconv -f ISO-8859-1 -t UTF-8 {path.name}",
            reason="not UTF-8",
        ) from None


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    # Bytes are split, not text: U+2028 inside a JSON string ends no line.
    with _open(path) as stream:
        yield from enumerate(stream, start=1)


def _object_or_error(value: object, path: Path, row: int) -> Row | DataError:
    if isinstance(value, dict):
        return value
    return DataError(
        f"{path}:{row}: a row must be a JSON object, found {describe(value)}", reason="row is not an object"
    )


def _read_jsonl(path: Path) -> NumberedRows:
    for row, raw in _raw_lines(path):
        try:
            line = _decode(raw, path, row)
            if line.strip():
                yield row, _object_or_error(json.loads(line), path, row)
        except json.JSONDecodeError as error:
            hint = "; this seems a JSON array, name the file .json" if line.strip() == "[" else ""
            what = f"broken JSON ({error.msg} at column {error.colno}){hint}"
            yield row, DataError(f"{path}:{row}: {what}", reason="broken JSON")
        except DataError as error:
            yield row, error


def _read_json(path: Path) -> NumberedRows:
    """An array of objects; also JSON lines or a single object under a .json name."""
    with _open(path) as stream:
        raw = stream.read()
    if raw.removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"[":
        try:
            only = json.loads(raw.decode("utf-8-sig"))
        except ValueError:
            yield from _read_jsonl(path)
        else:
            yield 1, _object_or_error(only, path, 1)
        return
    yield from _array_items(_decode(raw, path, 1), path)


def _array_items(text: str, path: Path) -> NumberedRows:
    """Items one after another, so that a large array never stands in memory as Python objects."""
    decoder = json.JSONDecoder()

    def after_space(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def broken(what: str, at: int) -> DataError:
        line = text.count("\n", 0, at) + 1
        return DataError(f"{path}:{row}: broken JSON array ({what}, line {line}); repair it", reason="broken JSON")

    at, row = after_space(text.index("[") + 1), 1
    if text[at : at + 1] == "]":
        return
    while True:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from None
        yield row, _object_or_error(value, path, row)
        at = after_space(end)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise broken("neither ',' nor ']' after the item", at)
        at, row = after_space(at + 1), row + 1


def _read_separated(path: Path, separator: str) -> NumberedRows:
    import csv

    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 kB
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
                    f"{path}:{row}: {n_cells} cells where the header has {len(names)} ({', '.join(names)});"
                    " quote cells that hold separators",
                    reason="cells and header differ in number",
                ),
            )
        else:
            yield row, cells


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
        except pa.ArrowException as error:
            raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def read_records(path: str | Path, kind: type[R]) -> Iterator[R]:
    """The records that `write_records` wrote. Raises DataError naming file and row for everything else."""
    for row, values in read_rows(path):
        try:
            yield from_row(kind, values) if file_ending(str(path)) == ".parquet" else from_dict(kind, values)
        except DataError as error:
            raise DataError(
                f"{path}:{row}: {error}; these are not {KIND_NAMES[kind]} as write_records writes them",
                field=error.field,
                reason=error.reason,
            ) from None


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records of one kind as .jsonl, .jsonl.gz or .parquet; returns how many. All or nothing: a reader sees the
    old file or the whole new one."""
    path = Path(path)
    writers = {".jsonl": _write_jsonl, ".jsonl.gz": _write_jsonl_gz, ".parquet": _write_parquet}
    ending = next((e for e in writers if path.name.lower().endswith(e)), None)
    if ending is None:
        raise DataError(f"{path}: records are written as {', '.join(writers)}; choose one of these endings")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as stream:
            count = writers[ending](stream, _one_kind(records))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _one_kind(records: Iterable[Record]) -> Iterator[Record]:
    kind: type | None = None
    for record in records:
        kind = kind or type(record)
        if type(record) is not kind:
            raise DataError(f"a file holds one kind of record, found {KIND_NAMES[kind]} and {KIND_NAMES[type(record)]}")
        yield record


def _write_jsonl(stream: IO[bytes], records: Iterator[Record]) -> int:
    count = 0
    for record in records:
        stream.write(json.dumps(to_dict(record), ensure_ascii=False, default=str).encode() + b"\n")
        count += 1
    return count


def _write_jsonl_gz(stream: IO[bytes], records: Iterator[Record]) -> int:
    # No name and no time inside, so that equal records make equal bytes.
    with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed:
        return _write_jsonl(packed, records)  # type: ignore[arg-type]


def _write_parquet(stream: IO[bytes], records: Iterator[Record]) -> int:
    import pyarrow.parquet as pq

    first = next(records, None)
    if first is None:
        raise DataError("no records to write; a Parquet file needs one to know its columns")
    table = rows_to_table(type(first), chain([first], records))
    pq.write_table(table, stream)
    return table.num_rows
