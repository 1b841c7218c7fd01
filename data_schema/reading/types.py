"""The types of data files and how each is read. Every type except .zip may also be compressed with gzip or zstd."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from data_schema.errors import DataError
from data_schema.reading.objects import read_json, read_jsonl
from data_schema.reading.separated import read_separated
from data_schema.reading.streams import (
    LONGEST_ROW,
    PACKED,
    NumberedRows,
    decoded,
    raw_lines,
    refuse_bomb,
    refuse_failed_download,
)
from data_schema.reading.tables import read_arrow, read_parquet


def _read_text(path: Path) -> NumberedRows:
    for row, raw in raw_lines(path):
        try:
            text = decoded(raw, path, row).rstrip("\r\n")
            if text.strip():
                yield row, {"text": text}
        except DataError as error:
            yield row, error


def _read_zip(path: Path) -> NumberedRows:
    """The .txt files in a .zip, one row each; other files in it are ignored."""
    refuse_failed_download(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".txt")]
            if not members:
                raise DataError(f"{path}: contains no .txt file; unpack it and give its files")
            refuse_bomb(sum(member.file_size for member in members), path)
            for row, member in enumerate(members, start=1):
                name = member.filename
                try:
                    if member.file_size > LONGEST_ROW:  # zipfile reads no more than this size
                        raise DataError(
                            f"{path}:{row}: {name} has more than {LONGEST_ROW >> 20} MiB, too much for one document;"
                            " unpack it: a .txt file gives one document per line"
                        )
                    text = decoded(archive.read(member), path, row, name)
                    if text.strip():
                        yield row, {"text": text.replace("\r\n", "\n"), "file": name}
                except DataError as error:
                    yield row, error
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises some ten types of zipfile, zlib, lzma and struct
        raise DataError(f"{path}: cannot be unpacked ({error}); download it again, or unpack it by hand") from None


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".ndjson": read_jsonl,
    ".csv": lambda path: read_separated(path, ","),
    ".tsv": lambda path: read_separated(path, "\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": _read_text,
    ".zip": _read_zip,
}


def unpacked_name(name: str) -> str:
    """The file's name without .gz or .zst."""
    packed = next((ending for ending in PACKED if name.lower().endswith(ending)), "")
    return name[: len(name) - len(packed)]
