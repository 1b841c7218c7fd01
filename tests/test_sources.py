"""Files, hub data sets and Python functions give the same records; drops are counted, errors say where and what."""

import codecs
import gc
import gzip
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_schema import (
    Comparison,
    DataError,
    Demonstration,
    Document,
    Message,
    Prompt,
    Records,
    Source,
    fingerprint,
    load,
    load_all,
    write_records,
)
from data_schema.formats.parts import Drop, Format, NumberedRows, Origin
from data_schema.formats.table import FORMATS

ROWS = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(10)]
BAD_ROWS = [*ROWS[:3], {"instruction": "Say 3.", "input": "", "output": ""}, {"instruction": "Say 4."}, *ROWS[5:]]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(records: Records[Demonstration]) -> list[str]:
    return [record.messages[-1].content for record in records]


def test_a_file_becomes_records_in_its_order(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.v2.jsonl", ROWS)
    records = load(Source(path), Demonstration)
    assert answers(records) == [str(i) for i in range(10)]
    assert (records.format, records.kind, records.dropped) == ("alpaca", Demonstration, {})
    assert records[0].id == "talk.v2:1" and records[-1].id == "talk.v2:10"
    assert records[3].source == path
    assert records[3] == list(records)[3]


def test_skip_and_limit_cut_disjoint_pieces_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.jsonl", ROWS)
    assert answers(load(Source(path, limit=4), Demonstration)) == ["0", "1", "2", "3"]
    piece = load(Source(path, skip=4, limit=3), Demonstration)
    assert answers(piece) == ["4", "5", "6"]
    assert piece[0].id == "talk:5"  # the row's number in the file


def test_a_bad_row_stops_with_file_row_field_and_cure(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.jsonl", BAD_ROWS)
    with pytest.raises(DataError, match=r"talk.jsonl:4: 'output' is empty; fix .* set on_bad_row: drop") as caught:
        load(Source(path), Demonstration)
    assert caught.value.field == "output"


def test_bad_rows_can_be_dropped_and_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "talk.jsonl"
    write(path, BAD_ROWS)
    path.write_bytes(b"{broken\n" + path.read_bytes() + b'{"instruction": "caf\xe9"}\n5\n')
    with caplog.at_level(logging.INFO, logger="triptych.data"):
        records = load(Source(str(path), on_bad_row="drop"), Demonstration)
    assert answers(records) == ["0", "1", "2", "5", "6", "7", "8", "9"]
    assert sum(records.dropped.values()) == 5
    assert {"'output' is empty", "broken JSON", "not UTF-8", "row is not an object"} < set(records.dropped)
    (line,) = caplog.messages
    assert "format alpaca, 8 demonstrations, dropped 5 (" in line and "broken JSON: 1" in line


def test_when_no_row_is_left_the_reasons_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.jsonl", [{"instruction": "a", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"no demonstrations left: all were dropped \('output' is empty: 3\)"):
        load(Source(path, on_bad_row="drop"), Demonstration)
    with pytest.raises(DataError, match=r"no demonstrations left: there are no rows \(after skip\)"):
        load(Source(path, skip=7), Demonstration)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no documents left: no rows"):
        load(Source(str(tmp_path / "empty.jsonl")), Document)


def test_an_odd_first_row_does_not_decide_what_format_a_file_is_in(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]}
    answered = {"instruction": "Hi?", "output": "Ho."}
    for name, odd, good, form in [
        ("talks.jsonl", {"conversations": []}, talk, "sharegpt"),
        ("answers.jsonl", {**answered, "output": ["Ho.", "Hm."]}, answered, "alpaca"),
    ]:
        path = write(tmp_path / name, [odd, good, good])
        records = load(Source(path, on_bad_row="drop"), Demonstration)
        assert (records.format, len(records), sum(records.dropped.values())) == (form, 2, 1)
    with pytest.raises(DataError, match=r"talks.jsonl:1: 'messages' must end with the assistant"):
        load(Source(str(tmp_path / "talks.jsonl")), Demonstration)


def test_a_relative_path_is_also_looked_up_in_triptych_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "talk.jsonl", ROWS)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TRIPTYCH_DATA", str(tmp_path))
    assert len(load(Source("talk.jsonl"), Demonstration)) == 10
    write(tmp_path / "here" / "talk.jsonl", ROWS[:2])
    assert len(load(Source("talk.jsonl"), Demonstration)) == 2  # the current folder first
    with pytest.raises(DataError, match=r"tolk.jsonl: no such file; .* contains talk.jsonl"):
        load(Source("tolk.jsonl"), Demonstration)


def test_rows_of_the_hub_and_of_a_file_give_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", "score": i} for i in range(5)]
    rows[2]["note"] = "odd"  # the hub's table gives every other row note=None
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.update(options, name=name)
        return datasets.Dataset.from_list([{"note": None, **row} for row in rows])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = load(Source("someone/some-pairs:harmless", split="test", skip=1), Comparison)
    assert asked == {"name": "someone/some-pairs", "data_dir": "harmless", "split": "test"}
    local = load(Source(write(tmp_path / "pairs.jsonl", rows), skip=1), Comparison)

    def content(records: Records[Comparison]) -> list[Any]:
        return [(r.prompt, r.responses, r.ranks, r.meta, r.id.rpartition(":")[2]) for r in records]

    assert content(hub) == content(local)
    assert hub[0].id == "some-pairs/harmless:2"


def test_a_hub_data_set_that_cannot_be_had_is_one_line_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"cannot load split 'train' .*no route to host.*path of a local copy"
    ) as caught:
        load(Source("someone/some-pairs"), Comparison)
    assert "\n" not in str(caught.value)


def test_the_revision_in_the_hub_s_cache_is_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    unknown = fingerprint(Source("someone/some-pairs"))
    refs = tmp_path / "datasets--someone--some-pairs" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    assert fingerprint(Source("someone/some-pairs")) not in (unknown, fingerprint(Source("someone/other-pairs")))


MODULE = """
from data_schema import Message, Prompt
import my_words

def prompts(split, limit, seed):
    for i in range(limit or 5):
        yield Prompt(f"{split}-{seed}-{i}", "mine", (Message("user", my_words.WORD * (i + 1)),))
"""


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_prompts.py").write_text(MODULE)
    (tmp_path / "my_words.py").write_text("WORD = 'hey '\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_prompts", None)
    sys.modules.pop("my_words", None)


def test_a_python_function_gives_records(my_module: Path) -> None:
    source = Source("python:my_prompts:prompts", split="test", skip=1, limit=2)
    records = load(source, Prompt, seed=7)
    assert [record.id for record in records] == ["test-7-1", "test-7-2"]
    assert records.format == "python"
    with pytest.raises(DataError, match="yielded a Prompt; it must yield documents"):
        load(source, Document)
    with pytest.raises(DataError, match="has no function 'promts'"):
        load(Source("python:my_prompts:promts"), Prompt)
    with pytest.raises(DataError, match="no such Python module"):
        load(Source("python:nowhere_to_be_found:prompts"), Prompt)
    with pytest.raises(DataError, match="write it as python:module:function"):
        load(Source("python:my_prompts"), Prompt)


def test_the_fingerprint_of_a_function_follows_its_source_and_the_seed(my_module: Path) -> None:
    source = Source("python:my_prompts:prompts")
    first = fingerprint(source, seed=1)
    assert fingerprint(source, seed=1) == first
    assert fingerprint(source, seed=2) != first
    (my_module / "my_words.py").write_text("WORD = 'ho '\n")
    assert fingerprint(source, seed=1) != first


def test_the_fingerprint_of_a_file_follows_its_bytes_and_the_settings_only(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.jsonl", ROWS)
    first = fingerprint(Source(path))
    assert load(Source(path), Demonstration).fingerprint == first
    assert fingerprint(Source(path), seed=5) == first
    assert fingerprint(Source(write(tmp_path / "copy.jsonl", ROWS))) == first
    changed = [Source(path, limit=3), Source(path, skip=1), Source(path, on_bad_row="drop"), Source(path, "alpaca")]
    assert len({first, *map(fingerprint, changed)}) == 5
    write(tmp_path / "talk.jsonl", ROWS[:-1])
    assert fingerprint(Source(path)) != first


def test_several_sources_follow_one_another_with_ids_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.jsonl", BAD_ROWS)
    source = Source(path, on_bad_row="drop")
    pair = write(tmp_path / "pair.jsonl", [{"prompt": "a", "completion": "b"}])
    records = load_all([source, source, Source(pair)], Demonstration)
    assert answers(records) == 2 * ["0", "1", "2", "5", "6", "7", "8", "9"] + ["b"]
    assert len({record.id for record in records}) == len(records) == 17
    assert records[0].id == "talk:1" and records[8].id == "talk:1~2"
    assert set(records.dropped.values()) == {2}
    assert records.format == "alpaca + prompt_completion"
    assert records.fingerprint != load_all([source, Source(pair)], Demonstration).fingerprint


def test_own_records_keep_their_fields_through_every_file_type(tmp_path: Path) -> None:
    record = Comparison("c1", "s", (Message("user", "日?"),), ("a", "b"), (1, 1), "ann", 0.5, "g", {"k": [1, "é"]})
    for name in ("r.jsonl", "r.jsonl.gz", "r.parquet"):
        write_records(tmp_path / name, [record])
        assert list(load(Source(str(tmp_path / name)), Comparison)) == [record]


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"format": "alpacca"}, r"unknown format 'alpacca'. Did you mean 'alpaca'\?"),
        ({"limit": 0}, "limit must be at least 1, found 0"),
        ({"skip": -1}, "skip must not be negative"),
        ({"on_bad_row": "ignore"}, "on_bad_row must be error or drop, found 'ignore'"),
        ({"path": " "}, "path is empty"),
    ],
)
def test_a_source_that_cannot_be_read_cannot_be_made(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(DataError, match=error):
        Source(**({"path": "talk.jsonl"} | settings))


def test_one_row_may_hold_several_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(row: Any, origin: Origin) -> Any:
        return [Document(*origin, page) if page else Drop("empty page") for page in row["pages"]]

    monkeypatch.setitem(FORMATS, "book", Format(frozenset({"pages"}), lambda row: True, {Document: pages}))
    records = load(Source(write(tmp_path / "books.jsonl", [{"pages": ["a", "", "b"]}, {"pages": ["c"]}])), Document)
    assert [(r.id, r.text) for r in records] == [("books:1", "a"), ("books:1~2", "b"), ("books:2", "c")]
    assert records.dropped == {"empty page": 1}


def test_a_folder_or_pattern_is_its_files_one_after_another(tmp_path: Path) -> None:
    for name, rows in (("b.jsonl", BAD_ROWS[:4]), ("a.jsonl", ROWS[5:7]), ("notes.md", [])):
        write(tmp_path / name, rows)
    for path in (tmp_path, tmp_path / "*.jsonl"):
        records = load(Source(str(path), on_bad_row="drop"), Demonstration)
        assert [r.id for r in records] == ["a:1", "a:2", "b:1", "b:2", "b:3"]
        assert answers(load(Source(str(path), skip=1, limit=2), Demonstration)) == ["6", "0"]
    with pytest.raises(DataError, match=r"b.jsonl:4: 'output' is empty"):
        load(Source(str(tmp_path)), Demonstration)
    before = fingerprint(Source(str(tmp_path)))
    write(tmp_path / "b.jsonl", ROWS[:1])
    assert fingerprint(Source(str(tmp_path))) != before


def test_a_folder_without_one_type_of_data_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no data file; give a file or folder"):
        load(Source(str(tmp_path)), Demonstration)
    with pytest.raises(DataError, match="no file matches this pattern"):
        load(Source(str(tmp_path / "*.json")), Demonstration)
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match=r"several types \(.jsonl, .txt\); give one file, or a pattern .*\*.jsonl"):
        load(Source(str(tmp_path)), Demonstration)


def test_gathered_rows_are_what_skip_and_limit_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(rows: NumberedRows) -> NumberedRows:
        waiting: list[Any] = []
        for number, row in rows:
            if isinstance(row, DataError):
                yield number, row
            elif waiting:
                yield number, {"text": f"{waiting.pop()['half']} {row['half']}"}
            else:
                waiting.append(row)

    def whole(row: Any, origin: Origin) -> Any:
        return Document(*origin, row["text"])

    form = Format(frozenset({"half"}), lambda row: True, {Document: whole}, gather=pairs)
    monkeypatch.setitem(FORMATS, "halves", form)
    rows = [{"half": "a"}, {"other": 1}, {"half": "b"}, {"half": "c"}, {"half": "d"}]
    source = Source(write(tmp_path / "halves.jsonl", rows), on_bad_row="drop")
    records = load(source, Document)
    assert [(r.id, r.text) for r in records] == [("halves:3", "a b"), ("halves:5", "c d")]
    assert records.dropped == {"'half' is missing": 1}
    assert [r.text for r in load(Source(source.path, skip=2, limit=1), Document)] == ["c d"]


def test_importing_data_schema_loads_no_heavy_library() -> None:
    code = "import data_schema, sys; print({'torch', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "set()", done.stderr


def test_a_path_that_looks_like_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="talk: not a file, not owner/name on the hub and not python"):
        load(Source("talk"), Demonstration)


def test_records_select_slice_and_become_a_dataset() -> None:
    records = Records.of(Document, (Document(f"d{i}", "s", f"text {i}") for i in range(3000)))
    assert [r.id for r in records] == [f"d{i}" for i in range(3000)]
    chosen = records.select(range(2999, -1, -3)).select([0, 5])
    assert [r.id for r in chosen] == ["d2999", "d2984"]
    assert [r.id for r in records[-2:]] == ["d2998", "d2999"]
    assert chosen.to_dataset()["text"][:] == ["text 2999", "text 2984"]
    assert len(records.to_dataset()) == 3000
    assert len({records.fingerprint, chosen.fingerprint, records.select([1]).fingerprint}) == 3
    with pytest.raises(IndexError):
        records[3000]
    with pytest.raises(IndexError):
        records.select([3000])


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = Records.of(Document, [Document("d", "s", "text")])
    gc.collect()
    assert records[0].text == "text"
    assert not os.listdir(tmp_path)


def find_public_data() -> Path | None:
    candidates = [os.environ.get("TRIPTYCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    return next((Path(c) for c in candidates if c and (Path(c) / "pref").is_dir()), None)


PUBLIC = find_public_data()
TEXTS = sorted(path for ending in ("txt", "jsonl") for path in PUBLIC.glob(f"text/*.{ending}*")) if PUBLIC else []


def opened(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_each_line_of_a_public_text_is_a_document_unless_it_is_blank_or_not_utf_8(path: Path) -> None:
    lines = [line for line in opened(path).removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    n_foreign = sum(not is_utf8(line) for line in lines)
    records = load(Source(str(path), on_bad_row="drop"), Document)
    assert records.dropped == ({"not UTF-8": n_foreign} if n_foreign else {})
    assert len(records) == sum(bool(line.decode().strip()) for line in lines if is_utf8(line))


@pytest.mark.skipif(PUBLIC is None, reason="no public data; name its folder in TRIPTYCH_DATA")
def test_alpaca_s_no_input_marks_stand_in_no_prompt() -> None:
    records = load(Source(f"{PUBLIC}/sft/alpaca_5000.json.gz"), Prompt)
    assert not [r for r in records if "noinput" in r.prompt[-1].content.lower().replace(" ", "")]


@pytest.mark.skipif(PUBLIC is None, reason="no public data; name its folder in TRIPTYCH_DATA")
def test_a_chosen_transcript_of_hh_demonstrates_whatever_the_rejected_one_says() -> None:
    records = load(Source(f"{PUBLIC}/pref/hh_*.jsonl.gz"), Demonstration)
    assert len(records) > 100 * sum(records.dropped.values())
    assert set(records.dropped) <= {"empty answer", "turns do not alternate", "empty turn"}
