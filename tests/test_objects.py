"""JSON in any of its forms gives its rows one at a time; what JSON allows and a row cannot mean is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_schema import DataError, Demonstration, Source, load, read_rows
from data_schema.files import rows_or_errors
from data_schema.reading import objects

GOOD = '{"a": 1}'
TWICE = '{"a": 1, "b": 2, "a": 3}'
INSIDE = '{"m": [{"role": "user", "content": "x", "content": "y"}]}'
DEEP = '{"a": ' + "[" * 300 + "]" * 300 + "}"
REFUSED = {
    "a key twice": (TWICE, "the key 'a' is given twice"),
    "a key twice, inside": (INSIDE, "the key 'content' is given twice"),
    "not a number": ('{"a": NaN}', "NaN is not JSON; write null"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is not JSON"),
    "deep": (DEEP, "nested more than 200 deep"),
}


def forms(bad: str) -> dict[str, str]:
    """The same three rows, the second of them bad, in each form of JSON."""
    return {
        "rows.jsonl": f"{GOOD}\n{bad}\n{GOOD}\n",
        "lines.json": f"{GOOD}\n{bad}\n{GOOD}\n",
        "array.json": f"[{GOOD}, {bad},\n {GOOD}]",
        "array.jsonl": f"[\n{GOOD},\n{bad},\n{GOOD}\n]\n",
    }


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", forms(""))
def test_a_row_that_json_allows_but_no_row_means_is_refused_and_the_others_are_read(
    tmp_path: Path, case: str, name: str
) -> None:
    bad, cause = REFUSED[case]
    path = tmp_path / name
    path.write_text(forms(bad)[name])
    rows = list(rows_or_errors(path))
    assert [number for number, _ in rows] == [1, 2, 3]
    assert rows[0][1] == rows[2][1] == {"a": 1}
    assert isinstance(rows[1][1], DataError)
    assert str(rows[1][1]).startswith(f"{path}:2: ") and cause in str(rows[1][1])


@pytest.mark.parametrize("case", REFUSED)
def test_a_single_object_is_held_to_the_same_rules(tmp_path: Path, case: str) -> None:
    bad, cause = REFUSED[case]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(bad).replace('"', "") and bad.replace(", ", ",\n"))
    with pytest.raises(DataError, match=r"one.json:1: ") as caught:
        list(read_rows(path))
    assert cause in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_an_array_gives_the_same_rows_however_it_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(objects, "CHUNK", chunk)
    rows = [
        {"a": 'é"\\\n', "n": -1.5e-7},
        {"t": True, "f": False, "z": None},
        {"d": {"e": [1, 23, {}]}, "😀": "\u2028"},
    ]
    path = tmp_path / "rows.json"
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        path.write_text(text)
        assert list(read_rows(path)) == list(enumerate(rows, start=1))


def test_an_array_that_is_cut_off_is_named_with_row_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "CHUNK", 8)
    path = tmp_path / "rows.json"
    whole = json.dumps([{"a": 1, "b": "two"}] * 3, indent=1)
    for end in range(1, len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(
            DataError, match=rf"rows.json:\d: broken JSON array .*line {whole[:end].count(chr(10)) + 1}\b"
        ):
            rows = list(read_rows(path))
            assert not rows  # not reached


def test_a_broken_object_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{\n "a": 1,\n "b": \n}\n')
    with pytest.raises(DataError, match=r"one.json:4: broken JSON .Expecting value at column 1.; is the file complete"):
        list(read_rows(path))


def test_lines_of_which_the_first_is_broken_are_still_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": \n{"a": 1}\n{"a": 2}\n')
    rows = list(rows_or_errors(path))
    assert "rows.json:1: broken JSON" in str(rows[0][1])
    assert [row for _, row in rows[1:]] == [{"a": 1}, {"a": 2}]


def test_the_log_names_the_first_row_of_each_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    good = '{"prompt": "a", "completion": "b"}'
    path.write_text(f"{good}\n{{broken\n{good}\n{{broken\n{TWICE}\n")
    with caplog.at_level("INFO", logger="triptych.data"):
        assert len(load(Source(str(path), on_bad_row="drop"), Demonstration)) == 2
    assert f"a key is given twice: 1 (first: {path}:5), broken JSON: 2 (first: {path}:2)" in caplog.text


def test_a_deep_row_below_the_bound_passes_through_all_of_the_data_layer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = "[" * 190 + "]" * 190
    path.write_text(f'{{"prompt": "a", "completion": "b", "x": {deep}}}\n')
    records = load(Source(str(path)), Demonstration)
    assert records[0].meta["x"] == json.loads(deep)
