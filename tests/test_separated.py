"""Separated files: the separator is the header's, a name stands once, every row has the header's cells."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from data_schema import DataError, read_rows


def rows(path: Path, content: str) -> list[dict[str, object]]:
    path.write_bytes(content.encode())
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", "prompt;completion\na, b;c\n"),
        ("f.csv", '"prompt";"completion"\r\n"a, b";"c"\r\n'),
        ("f.csv", "prompt\tcompletion\na, b\tc\n"),
        ("f.csv", "prompt|completion\na, b|c\n"),
        ("f.csv", "sep=;\nprompt;completion\na, b;c\n"),
        ("f.tsv", "prompt;completion\na, b;c\n"),
        ("f.tsv", 'prompt,completion\n"a, b",c\n'),
    ],
)
def test_a_header_with_another_separator_is_read_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    with caplog.at_level(logging.INFO, "triptych.data"):
        assert rows(tmp_path / name, content) == [{"prompt": "a, b", "completion": "c"}]
    assert content.startswith("sep=") or "its cells are separated by" in caplog.text


@pytest.mark.parametrize("content", ["text\na;b\n", "What is it? Say; quickly\na\n", "a:b\nc\n"])
def test_a_single_column_stays_one(tmp_path: Path, content: str) -> None:
    (row,) = rows(tmp_path / "f.csv", content)
    assert len(row) == 1


@pytest.mark.parametrize(("name", "mark"), [("f.csv", ","), ("f.tsv", "\t"), ("f.csv", ";")])
def test_a_column_given_twice_is_refused_with_file_line_and_name(tmp_path: Path, name: str, mark: str) -> None:
    with pytest.raises(DataError, match=rf"{name}:1: the header has the column 'prompt' twice"):
        rows(tmp_path / name, mark.join(["prompt", "completion", " prompt"]) + "\n" + mark.join("abc") + "\n")


def test_a_quote_that_never_ends_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"f.csv:2: broken CSV .*check its quotes"):
        rows(tmp_path / "f.csv", 'a,b\n1,2\n"3,4\n5,6\n')
