"""Rows come out of every file type alike, and what is wrong with a file is said with its place."""

import codecs
import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_schema import Comparison, DataError, Demonstration, Message, Prompt, read_records, read_rows, write_records

ROWS = [{"a": "one", "b": "zwei\u2028drei"}, {"a": 'tw"o, 2', "b": "x\ty\nz"}, {"a": "日本", "b": "c"}]


def jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def separated(mark: str) -> bytes:
    lines = [["a", "b"], *(list(row.values()) for row in ROWS)]
    return "\r\n".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


FILES: dict[str, bytes] = {
    "rows.jsonl": jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS).replace(b"\n", b"\r\n") + b"\r\n\r\n",
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": jsonl(ROWS),
    "array.jsonl": json.dumps(ROWS, indent=1).encode(),
    "one_line_array.jsonl": json.dumps(ROWS).encode(),
    "bom.json": codecs.BOM_UTF8 + json.dumps(ROWS).encode(),
    "bom.jsonl": codecs.BOM_UTF8 + jsonl(ROWS),
    "rows.csv": separated(","),
    "rows.tsv": separated("\t"),
    "bom.csv": codecs.BOM_UTF8 + separated(","),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(FILES[name]) if packed else FILES[name])
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_parquet_gives_the_same_rows(tmp_path: Path, packed: bool) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    path = tmp_path / "rows.parquet"
    if packed:
        path = tmp_path / "rows.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


def test_a_text_file_gives_its_lines_and_passes_over_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(codecs.BOM_UTF8 + b" = Title = \r\n\r\n  \r\nIt rained .\r\n")
    assert list(read_rows(path)) == [(1, {"text": " = Title = "}), (4, {"text": "It rained ."})]


def test_the_text_files_of_an_archive_are_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "speeches.zip"
    path.write_bytes(
        zipped({"s/": b"", "s/1.txt": codecs.BOM_UTF8 + b"One.\r\nTwo.\r\n", "s/README": b"-", "s/2.TXT": b"\n"})
    )
    assert list(read_rows(path)) == [(1, {"text": "One.\nTwo.\n", "file": "s/1.txt"})]


def test_the_row_number_of_jsonl_is_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [number for number, _ in read_rows(path)] == [2, 4]


def test_a_single_object_under_a_json_name_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"a": [1, 2]}, indent=2))
    assert list(read_rows(path)) == [(1, {"a": [1, 2]})]


def test_cells_beyond_the_csv_module_s_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(next(read_rows(path))[1]["a"]) == 200_000


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "latin-1 line": ("f.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', r"f.jsonl:2: not UTF-8 \(byte 0xe9 at 11\).*iconv"),
    "latin-1 text": ("f.txt", b"ok\ncaf\xe9\n", r"f.txt:2: not UTF-8"),
    "latin-1 csv": ("f.csv", b"a\nok\ncaf\xe9\n", r"f.csv:3: not UTF-8"),
    "broken line": ("f.jsonl", b'{"a": 1}\n{"a": \n', r"f.jsonl:2: broken JSON \(Expecting value at column"),
    "number of too many digits": (
        "f.jsonl",
        b'{"a": ' + b"9" * 5000 + b"}",
        "f.jsonl:1: broken JSON .Exceeds the limit",
    ),
    "nested too deeply": ("f.json", b'{"a":' * 100_000, "f.json:1: broken JSON .maximum recursion depth"),
    "item nested too deeply": ("f.json", b"[" * 100_000, "f.json:1: broken JSON array .maximum recursion depth"),
    "two arrays": (
        "f.json",
        b'[{"a": 1}]\n[{"a": 2}]',
        "f.json:1: broken JSON array .more text after the array, line 2",
    ),
    "row is text": ("f.jsonl", b'"a"\n', r"f.jsonl:1: a row must be a JSON object, found text \('a'\)"),
    "item is a number": ("f.json", b'[{"a": 1}, 5]', r"f.json:2: a row must be a JSON object, found a number"),
    "array cut off": ("f.json", b'[{"a": 1},\n{"a"', r"f.json:2: broken JSON array \(.*line 2\)"),
    "comma missing": ("f.json", b'[{"a": 1} {"a": 2}]', "f.json:1: broken JSON array .neither"),
    "too many cells": ("f.csv", b"a,b\n1,2\n1,2,3\n", r"f.csv:2: 3 cells, but the header has 2 \(a, b\)"),
    "too few cells": ("f.tsv", b"a\tb\n1\n", r"f.tsv:1: 1 cells, but the header has 2"),
    "not gzip": ("f.jsonl.gz", b'{"a": 1}', "f.jsonl.gz: broken gzip file"),
    "gzip cut off": ("f.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12], "f.jsonl.gz: broken gzip file"),
    "not Parquet": ("f.parquet", b"PAR1 oh no", "f.parquet: broken Parquet file"),
    "not a zip": ("f.zip", b"PK", "f.zip: cannot be unpacked .*unpack it by hand"),
    "no text in a zip": ("f.zip", zipped({"a/b.csv": b"x"}), "f.zip: contains no .txt file; unpack it"),
    "latin-1 in a zip": (
        "f.zip",
        zipped({"a/1.txt": b"ok", "a/2.txt": b"caf\xe9"}),
        r"f.zip:2: a/2.txt is not UTF-8 \(byte 0xe9 at 4\); convert it, for example: iconv .* a/2.txt",
    ),
    "unknown ending": ("f.rar", b"PK", "unknown file type; use one of the endings .jsonl, .json"),
}


def test_a_page_of_a_parquet_file_that_cannot_be_unpacked_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    words = [f"{n * 7919 % 1000003} wrens" for n in range(1000)]
    pq.write_table(pa.table({"a": words}), path, compression="zstd")
    raw = bytearray(path.read_bytes())
    raw[200:600] = b"\xff" * 400
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"f.parquet: broken Parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_row_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, error = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=error) as caught:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_similar_ones(tmp_path: Path) -> None:
    (tmp_path / "alpaca_data.json").write_text("[]")
    with pytest.raises(DataError, match=r"no such file; .* contains alpaca_data.json"):
        list(read_rows(tmp_path / "alpaca_dat.json"))
    with pytest.raises(DataError, match=r"no such file, and no folder"):
        list(read_rows(tmp_path / "nowhere" / "alpaca_dat.json"))
    with pytest.raises(DataError, match=r"is a folder; give one of its files .alpaca_data.json"):
        list(read_rows(tmp_path))


RECORDS = [
    Comparison("c1", "s", (Message("user", "Hi?"),), ("a", "b"), (1, 2), margin=1.5, meta={"k": [None, "é"]}),
    Comparison("c2", "s", (Message("user", "日"),), ("a", "b", "a"), (1, 1, 1), labeler="ann", group="g"),
]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.parquet"])
def test_written_records_are_read_back_equal(tmp_path: Path, name: str) -> None:
    assert write_records(tmp_path / "new" / name, iter(RECORDS)) == 2
    assert list(read_records(tmp_path / "new" / name, Comparison)) == RECORDS
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_equal_records_make_equal_gzip_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "one.jsonl.gz", RECORDS)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_records(tmp_path / "two.jsonl.gz", RECORDS)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, RECORDS)
    with pytest.raises(DataError, match=r"a file takes one kind of record, found comparisons and prompts"):
        write_records(path, [RECORDS[0], Prompt("p", "s", (Message("user", "x"),))])
    assert list(read_records(path, Comparison)) == RECORDS
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written to this file type; use .jsonl, .jsonl.gz, .parquet"):
        write_records(tmp_path / "r.csv", RECORDS)
    assert not list(tmp_path.iterdir())


def test_reading_records_is_strict_and_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, RECORDS)
    with pytest.raises(DataError, match=r"r.jsonl:1: unknown key 'prompt' for demonstrations.*write_records"):
        list(read_records(path, Demonstration))
