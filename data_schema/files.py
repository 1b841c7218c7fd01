"""Read rows from data files; read and write files of records."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

from data_schema.errors import DataError
from data_schema.reading.separated import read_tsv_without_header
from data_schema.reading.streams import NumberedRows, Row
from data_schema.reading.types import READERS, unpacked_name
from data_schema.records import KIND_NAMES, R, Record, from_dict, to_dict
from data_schema.table import from_row, rows_to_table

SHEETS = (".xlsx", ".xls", ".ods")


def read_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) of a file, one at a time. In JSONL and .txt the row number is the line number.

    Raises DataError, naming file, row and fix, at the first row that cannot be read."""
    for number, row in rows_or_errors(path):
        if isinstance(row, DataError):
            raise row
        yield number, row


def rows_or_errors(path: str | Path, header: Sequence[str] | None = None) -> NumberedRows:
    """Like `read_rows`, with a DataError in place of an unreadable row if the rows after it can still be read.

    `header` names the columns of a .tsv without a header line; for other files it is ignored.

    Raises DataError for a missing file or an unknown ending (when called), and where nothing further can be read."""
    path = Path(path)
    check_is_file(path)
    ending = file_ending(path.name)
    if ending is None:
        if path.suffix.lower() in SHEETS:
            raise DataError(f"{path}: is a spreadsheet; save it as CSV in UTF-8, and give that file")
        raise DataError(
            f"{path}: unknown file type; use one of the endings {', '.join(READERS)} (or these + .gz or .zst)"
        )
    if header is not None and ending == ".tsv":
        return _within_memory(path, read_tsv_without_header(path, header))
    return _within_memory(path, READERS[ending](path))


def _within_memory(path: Path, rows: NumberedRows) -> NumberedRows:
    try:
        yield from rows
    except MemoryError:
        raise DataError(f"{path}: a row does not fit into memory; divide it into several") from None


def file_ending(name: str) -> str | None:
    """The ending, without .gz or .zst, that decides how a file of this name is read; None if it is not a known one."""
    ending = Path(unpacked_name(name.lower())).suffix
    return ending if ending in READERS else None


def check_is_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if file_ending(p.name))
        raise DataError(f"{path}: is a folder; give one of its files ({few(inside) or 'none can be read'})")
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file, and no folder {folder.absolute()}; check the path")
    import difflib

    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or [n for n in names if file_ending(n)]
    raise DataError(f"{path}: no such file; {folder.absolute()} contains {few(near) or 'no data file'}")


def stem(path: Path) -> str:
    """The file's name without its endings: train of train.jsonl.gz."""
    return Path(unpacked_name(path.name)).stem


def few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_records(path: str | Path, kind: type[R]) -> Iterator[R]:
    """The records of a file that `write_records` wrote. Raises DataError, naming file and row, for anything else."""
    for row, values in read_rows(path):
        try:
            yield from_row(kind, values) if file_ending(str(path)) == ".parquet" else from_dict(kind, values)
        except DataError as error:
            raise DataError(
                f"{path}:{row}: {error}; give a file of {KIND_NAMES[kind]} that write_records wrote",
                field=error.field,
                reason=error.reason,
            ) from None


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records of one kind as .jsonl, .jsonl.gz or .parquet and return their number. All or nothing: readers see
    the old file or the complete new one."""
    path = Path(path)
    writers = {".jsonl": _write_jsonl, ".jsonl.gz": _write_jsonl_gz, ".parquet": _write_parquet}
    ending = next((e for e in writers if path.name.lower().endswith(e)), None)
    if ending is None:
        raise DataError(f"{path}: records cannot be written to this file type; use {', '.join(writers)}")
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
            raise DataError(f"a file takes one kind of record, found {KIND_NAMES[kind]} and {KIND_NAMES[type(record)]}")
        yield record


def _write_jsonl(stream: IO[bytes], records: Iterator[Record]) -> int:
    count = 0
    for record in records:
        stream.write(json.dumps(to_dict(record), ensure_ascii=False, default=str).encode() + b"\n")
        count += 1
    return count


def _write_jsonl_gz(stream: IO[bytes], records: Iterator[Record]) -> int:
    # Without a file name and a time in the header, so that equal records give equal bytes.
    with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed:
        return _write_jsonl(packed, records)  # type: ignore[arg-type]  # as in reading/streams.py


def _write_parquet(stream: IO[bytes], records: Iterator[Record]) -> int:
    import pyarrow.parquet as pq

    first = next(records, None)
    if first is None:
        raise DataError("no records to write; a Parquet file needs at least one to define its columns")
    table = rows_to_table(type(first), chain([first], records))
    pq.write_table(table, stream)
    return table.num_rows
