"""Open a data file, decompressed, and read its lines; refuse what is not the data that its name promises.

Compressed data can unpack to far more than its size (1 kB of gzip to 1 MB, 1 kB of zstd to 10 MB), so what is unpacked
is bounded: a row by `LONGEST_ROW`, the whole by `MOST_UNPACKED` and `MOST_TIMES`. Text shrinks 3 to 10 times, a file of
nearly equal rows 50 times.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_schema.errors import DataError

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row | DataError]]

LONGEST_ROW = 2**26  # bytes of one row, 64 MiB: a book has 1 MB
MOST_UNPACKED = 2**28  # bytes that any compressed file may unpack to, 256 MiB; a larger one ..
MOST_TIMES = 200  # .. may unpack to this many times its size
PACKED = (".gz", ".zst")
START = 512  # bytes by which the content is recognised
WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head|<error>)", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
TEXT_MARKS = {  # of encodings other than UTF-8; UTF-32 before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
CONTENTS = {  # how files of other types begin -> (what the file is, what to do)
    b"\x1f\x8b": ("compressed with gzip", "add .gz to its name"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "add .zst to its name"),
    b"BZh": ("compressed with bzip2", "unpack it: bunzip2 FILE"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it: unxz FILE"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save it as CSV"),
    b"PAR1": ("a Parquet file", "name it .parquet"),
    b"ARROW1": ("an Arrow file", "name it .arrow"),
    b"%PDF": ("a PDF", "give the data that it shows as a file"),
}


def refuse_bomb(unpacked: int, path: Path) -> None:
    """Raise DataError if the file unpacks to this many bytes and no real data would."""
    if unpacked > max(MOST_UNPACKED, MOST_TIMES * path.stat().st_size):
        raise DataError(
            f"{path}: unpacks to more than {MOST_UNPACKED >> 20} MiB and more than {MOST_TIMES} times its size, as data"
            " made to fill the memory do; if you trust the file, unpack it and give the result"
        )


class Bounded(io.RawIOBase):
    """An unpacked stream that counts its bytes and raises DataError if there are too many."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.unpacked, self.path = stream, 0, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.unpacked += len(chunk)
        if self.unpacked > MOST_UNPACKED:
            refuse_bomb(self.unpacked, self.path)
        return len(chunk)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its name ends in .gz or .zst. Raises DataError where it cannot be decompressed or
    unpacks to too much."""
    ending = path.suffix.lower()
    if ending not in PACKED:
        with open(path, "rb") as plain:
            yield plain
        return
    refuse_failed_download(path)
    try:
        with gzip.open(path) if ending == ".gz" else _zstd(path) as packed:
            yield io.BufferedReader(Bounded(packed, path), 2**18)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip file ({error}); download it again, or remove .gz from its name") from None
    except OSError as error:
        if ending == ".gz" or error.errno is not None:
            raise
        raise DataError(
            f"{path}: broken zstd file ({error}); download it again, or remove .zst from its name, or unpack it with"
            f" the command zstd -d --long=31 {path.name}"
        ) from None


def _zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


def refuse_download(start: bytes, path: Path) -> None:
    """Raise DataError if a file's first bytes are those of a failed download: git-lfs's pointer or a web page."""
    if start.startswith(LFS_POINTER):
        raise DataError(
            f"{path}: is a pointer of git-lfs, not the data; run 'git lfs pull' in its folder, or download the file"
        )
    if WEB_PAGE.match(start.removeprefix(codecs.BOM_UTF8)):
        raise DataError(
            f"{path}: is a web page or an error message of a server, not data; download the file itself, for example"
            " with: hf download OWNER/NAME --repo-type dataset --local-dir DIR"
        )


def refuse_failed_download(path: Path) -> None:
    """`refuse_download` for a file that is not text."""
    with open(path, "rb") as stream:
        refuse_download(stream.read(START), path)


def refuse_other_content(start: bytes, path: Path) -> None:
    """Raise DataError if a text file's first bytes show that it is something else."""
    refuse_download(start, path)
    for mark, (what, cure) in CONTENTS.items():
        if start.startswith(mark):
            raise DataError(f"{path}: is {what}, whatever its name says; {cure}")
    encoding = next((name for mark, name in TEXT_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and max(start[:8:2].count(0), start[1:8:2].count(0)) > 2:
        encoding = "UTF-16LE" if start[1] == 0 else "UTF-16BE"  # without a mark, every other byte of ASCII is zero
    if encoding is not None:
        raise DataError(f"{path}: is {encoding} text; convert it, for example: {iconv(encoding, path.name)}")


def iconv(encoding: str, name: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 {name} > utf8_{Path(name).name}"


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its end). Raises DataError for other content and for an endless line."""
    # Split bytes, not text: U+2028 inside a JSON string must not end a line.
    with opened(path) as stream:
        number = 0
        refuse_other_content(stream.peek(START)[:START], path)  # type: ignore[attr-defined]  # both are BufferedReaders
        while line := stream.readline(LONGEST_ROW + 1):
            number += 1
            if len(line) > LONGEST_ROW:
                raise too_long(path, number)
            yield number, line


def too_long(path: Path, row: int) -> DataError:
    return DataError(
        f"{path}:{row}: the row has more than {LONGEST_ROW >> 20} MiB; divide its text into several rows, or look for a"
        " missing line end or quote"
    )


def decoded(raw: bytes, path: Path, row: int, member: str | None = None) -> str:
    """The text of a row, or of a whole `member` of an archive. Raises DataError if it is not UTF-8."""
    if row == 1 or member:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        whose = f"{member} is " if member else ""
        # Windows' code page is Latin-1 with letters and quotes in place of control characters.
        encoding = "WINDOWS-1252" if re.search(rb"[\x80-\x9f]", raw) else "ISO-8859-1"
        raise DataError(
            f"{path}:{row}: {whose}not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1});"
            f" convert it, for example: {iconv(encoding, member or path.name)}",
            reason="not UTF-8",
        ) from None
