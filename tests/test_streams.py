"""Compressed files are read like plain ones, within bounds; a file that is not what its name says is named as what it
is, in one line with the fix."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data_schema import DataError, read_rows
from data_schema.reading import streams

ROWS = [{"a": f"one {i} é", "b": "x" * i} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>404</body></html>"


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.json.zst", "rows.ndjson.zst", "rows.ndjson"])
def test_zstd_and_ndjson_give_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(zstd(LINES) if name.endswith(".zst") else LINES)
    assert [row for _, row in read_rows(path)] == ROWS


def test_a_zstd_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstd(LINES) + zstd(LINES))
    assert len(list(read_rows(path))) == 2 * len(ROWS)


@pytest.mark.parametrize(
    "content", [zstd(LINES)[:-4], LINES, zstd(LINES)[:40] + b"\0" * 40], ids=["cut", "not", "damaged"]
)
def test_a_broken_zstd_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(content)
    assert "broken zstd file" in refusal(path)


@pytest.mark.parametrize(
    "ending", ["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "zip", "jsonl.gz", "csv.zst"]
)
@pytest.mark.parametrize(
    ("content", "cause"), [(POINTER, "git lfs pull"), (PAGE, "a web page")], ids=["pointer", "page"]
)
def test_a_failed_download_is_recognised_in_every_file_type(
    tmp_path: Path, ending: str, content: bytes, cause: str
) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    assert cause in refusal(path)


OTHER: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(LINES), "add .gz to its name"),
    "zstd": (zstd(LINES), "add .zst to its name"),
    "workbook": (b"PK\x03\x04" + b"\0" * 40, "save it as CSV"),
    "parquet": (b"PAR1" + b"\0" * 40, "name it .parquet"),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8 rows"),
    "utf-16 without a mark": ("a,b\n1,2\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 rows"),
    "utf-16, the other order": ("a,b\n1,2\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 rows"),
    "utf-32": ("a,b\n1,2\n".encode("utf-32"), "iconv -f UTF-32 -t UTF-8 rows"),
    "an error of a bucket": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        "error message of a server",
    ),
}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt"])
@pytest.mark.parametrize("case", OTHER)
def test_a_text_file_that_is_something_else_is_named_with_the_fix(tmp_path: Path, ending: str, case: str) -> None:
    content, cure = OTHER[case]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    assert cure in refusal(path)


def test_windows_letters_are_converted_from_windows_code_page(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("a\nit\u2019s\n".encode("cp1252"))
    assert "iconv -f WINDOWS-1252 -t UTF-8 rows.csv > utf8_rows.csv" in refusal(path)


def gz_of(chunk: bytes, times: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as packed:
            for _ in range(times):
                packed.write(chunk)

    return write


def zst_of(chunk: bytes, times: int, start: bytes = b"") -> Callable[[Path], int]:
    return lambda path: path.write_bytes(zstd(start) + zstd(chunk) * times)


def zip_of(chunk: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", chunk)

    return write


BOMBS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "an endless line": ("b.jsonl.gz", gz_of(b"x" * 2**20, 5), "more than 1 MiB"),
    "an endless line of zstd": ("b.txt.zst", zst_of(b"x" * 2**20, 5), "more than 1 MiB"),
    "an endless object": ("b.json.gz", gz_of(b" " * 2**20, 5), "more than 1 MiB"),
    "an endless item": ("b.json.zst", zst_of(b"x" * 2**20, 5, b'[{"a": "'), "more than 1 MiB"),
    "an endless cell": ("b.csv.zst", zst_of(b"x\n" * 2**19, 5, b'a,b\n"'), "field larger than field limit"),
    "endless lines": ("b.jsonl.zst", zst_of(b"\n" * 2**19, 9), "200 times its size"),
    "an endless Parquet file": ("b.parquet.gz", gz_of(b"PAR1" * 2**20, 5), "200 times its size"),
    "a document in an archive": ("b.zip", zip_of(b"x" * 2**21), "more than 1 MiB"),
    "an archive": ("b.zip", zip_of(b"x" * 2**23), "200 times its size"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_data_that_grow_without_end_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    for module in ("streams", "objects", "separated", "types"):
        monkeypatch.setattr(f"data_schema.reading.{module}.LONGEST_ROW", 2**20)
    monkeypatch.setattr(streams, "MOST_UNPACKED", 2**22)
    name, write, cause = BOMBS[case]
    write(tmp_path / name)
    assert cause in refusal(tmp_path / name)


def test_a_large_file_of_nearly_equal_rows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_UNPACKED", 2**16)
    path = tmp_path / "rows.jsonl.gz"
    content = "".join(json.dumps({"a": "the same words in every row", "b": i}) + "\n" for i in range(5000)).encode()
    path.write_bytes(gzip.compress(content))
    assert len(content) > 2**16
    assert len(list(read_rows(path))) == 5000
