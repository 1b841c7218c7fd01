from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import QUICKSTART, byte_tokenizer

from pipeline.__main__ import main

WORLD = "python:data_schema.quickstart.data"
PAIR = {"prompt": "name a bird", "chosen": "a wren", "rejected": "a tree"}
ANSWERED = {"instruction": "name a bird", "input": "", "output": "a wren"}
OWN = {
    "id": "d1",
    "source": "team",
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def inspected(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The report as JSON; there is one object on standard output and nothing on the other."""
    assert main(["data", "inspect", *words, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and len(shown.out.splitlines()) == 1
    report: dict[str, Any] = json.loads(shown.out)
    return report


@pytest.mark.parametrize(
    ("rows", "form", "kind"),
    [
        ([PAIR], "preference", "comparisons"),
        ([ANSWERED], "alpaca", "demonstrations"),
        ([{"text": "Wrens are small."}], "text", "documents"),
        ([{"prompt": "name a bird"}], "prompt", "prompts"),
        ([OWN], "records", "demonstrations"),
        ([{**OWN, "messages": []}] * 300 + [OWN], "records", "demonstrations"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kind_is_what_the_format_gives_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], form: str, kind: str
) -> None:
    report = inspected(capsys, jsonl(tmp_path / "rows.jsonl", *rows))
    assert (report["source_format"], report["kind"], report["records"]) == (form, kind, 1)


def test_a_few_answers_that_pair_up_by_chance_make_no_comparisons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = [{"prompt": f"name {n} birds", "completion": "a wren", "label": n % 2 == 0} for n in range(30)]
    path = jsonl(tmp_path / "rows.jsonl", *marked, {"prompt": "name 2 birds", "completion": "no", "label": False})
    report = inspected(capsys, path)
    assert (report["kind"], report["records"]) == ("demonstrations", 15)
    assert inspected(capsys, path, "--kind", "comparisons")["records"] == 1


def test_the_reason_told_is_that_of_the_rows_and_not_of_a_kind_they_were_never_meant_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ANSWERED, ANSWERED])[:-4])
    assert main(["data", "inspect", str(path), "--json"]) == 2
    assert "rows.json:2: broken JSON array" in capsys.readouterr().err


def test_kind_and_format_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "rows.jsonl", PAIR, PAIR)
    report = inspected(capsys, path, "--kind", "prompts", "--format", "preference")
    assert (report["kind"], report["records"], report["duplicates"]) == ("prompts", 2, 1)


def test_bad_rows_are_dropped_and_counted_never_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    jsonl(path, PAIR, {**PAIR, "rejected": "a wren"}, {**PAIR, "chosen": 7}, ["no", "object"])
    path.write_bytes(path.read_bytes() + b'{"broken\n\xff\xfe\n')
    report = inspected(capsys, str(path))
    assert report["records"] == 1 and sum(report["dropped"].values()) == 5


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["{bad}"], "no known format"),
        (["{good}", "--format", "alpacca"], "Did you mean 'alpaca'?"),
        (["{good}", "--kind", "documents"], "not documents"),
        (["{good}", "--tokenizer", "./nowhere"], "./nowhere"),
        (["{good}", "--tokenizer", str(QUICKSTART), "--template", "chatmel"], "chatml"),
        (["{good}", "--against", "nowhere.jsonl"], "nowhere.jsonl"),
        (["{good}", "--html", "no/such/folder/page.html"], "no/such/folder"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    good = jsonl(tmp_path / "good.jsonl", PAIR)
    bad = jsonl(tmp_path / "bad.jsonl", {"colour": "blue"})
    assert main(["data", "inspect", *(word.format(good=good, bad=bad) for word in words), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and part in shown.err


def test_the_quickstarts_data_fit_its_tokenizer_and_template(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tokenizer", str(QUICKSTART), "--template", "quickstart", "--max-length", "64"]
    report = inspected(capsys, f"{WORLD}:demonstrations", *words)
    assert (report["kind"], report["template"], report["too_long"]) == ("demonstrations", "quickstart/1", 0)
    assert report["records"] == 1000 and inspected(capsys, f"{WORLD}:prompts", "--limit", "30")["records"] == 30
    assert [finding for finding in report["findings"] if finding["severity"] == "error"] == []


def test_a_tokenizer_without_a_model_will_do_and_its_faults_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer(pad_token="<|im_end|>").save_pretrained(tmp_path / "tokenizer")
    words = [jsonl(tmp_path / "rows.jsonl", ANSWERED), "--tokenizer", str(tmp_path / "tokenizer")]
    report = inspected(capsys, *words)
    assert report["template"] == "plain/1" and report["lengths"]["unit"] == "tokens"
    assert "pad_is_eos" in [finding["check"] for finding in report["findings"] if finding["severity"] == "error"]
    assert inspected(capsys, *words, "--pad-token", "<|pad|>")["findings"] == []


def test_leaks_between_two_files_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_set = jsonl(tmp_path / "test.jsonl", {"prompt": "Name a  bird"}, {"prompt": "name a fish"})
    report = inspected(capsys, jsonl(tmp_path / "rows.jsonl", ANSWERED), "--against", test_set)
    assert report["against"] == {"records": 2, "shared": 1, "nearly_shared": 0}
    assert [finding["check"] for finding in report["findings"]] == ["leak"]


def test_people_see_the_figures_and_get_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    level = logging.getLogger("triptych.data").level
    path = jsonl(tmp_path / "rows.jsonl", ANSWERED, ANSWERED)
    assert main(["data", "inspect", path, "--rows", "1", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "demonstrations, format alpaca" in shown and "[duplicates]" in shown and "\x1b" not in shown
    assert shown.count("⟦assistant: a wren") == 1
    assert page.read_text().startswith("<!doctype html>")
    assert logging.getLogger("triptych.data").level == level


def test_rows_at_which_a_run_stops_are_told_from_those_that_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*rows: Any) -> str:
        report = inspected(capsys, jsonl(tmp_path / "rows.jsonl", *rows))
        [finding] = [finding for finding in report["findings"] if finding["check"] == "dropped"]
        return str(finding["cure"])

    assert "a run stops at the first one: " in line(PAIR, {**PAIR, "chosen": 7}) and "rows.jsonl:2" in line(
        PAIR, {**PAIR, "chosen": 7}
    )
    tie = {"prompt": "name a bird", "response_0": "a wren", "response_1": "a gull", "score_0": 1, "score_1": 1}
    better = {**tie, "score_1": 2}
    assert line(better, tie) == "a run leaves them out and counts them, too"


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("rows.jsonl", "", "rows.jsonl: there are no rows in it"),
        ("rows.json", "[]", "rows.json: there are no rows in it"),
        ("rows.csv", "prompt,chosen,rejected\n", "rows.csv: there are no rows in it"),
        ("rows.jsonl", json.dumps(PAIR)[:-5] + "\n", "rows.jsonl:1: broken JSON"),
        ("rows.jsonl", '{"prompt": "a", "chosen": "b", "rejected": 7}\n', "rows.jsonl:1: 'rejected' must be text"),
    ],
)
def test_a_file_that_gives_no_row_is_named_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, part: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["data", "inspect", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert part in shown and len(shown.splitlines()) == 1 and "comparisons left" not in shown


def test_columns_that_nothing_reads_are_shown_with_a_count_and_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**PAIR, "note": "by hand", "quality": 3}, PAIR]
    report = inspected(capsys, jsonl(tmp_path / "rows.jsonl", *rows))
    assert report["unread"] == {"note": 1, "quality": 1}
    told = {
        finding["severity"]: finding["text"] for finding in report["findings"] if finding["check"] == "unread_columns"
    }
    assert told == {
        "note": "format preference does not read the columns note (1 of 2 rows, such as by hand)",
        "warning": "format preference does not read the columns quality (1 of 2 rows, such as 3)",
    }


def test_a_kind_that_the_format_has_and_no_row_gives_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "rejected": PAIR["chosen"]})
    report = inspected(capsys, path)
    [finding] = [finding for finding in report["findings"] if finding["check"] == "kind"]
    assert report["kind"] == "demonstrations" and "chosen and rejected are the same text: 2" in finding["text"]
