from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import quickstart_tokenizer

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Records, Source, load
from stages.data_checks.inspection import Report, Tokens, examine


def demonstration(number: int, question: str, answer: str) -> Demonstration:
    return Demonstration(f"d{number}", "s", (Message("user", question), Message("assistant", answer)))


BIRDS = ["wren", "robin", "heron", "gull", "stork", "kestrel"]
ROWS = [
    demonstration(i, f"what does a {bird} eat in a hard winter", f"{bird} food {i}") for i, bird in enumerate(BIRDS)
]


def checks(report: Report) -> dict[str, tuple[str, int | None]]:
    return {finding.check: (finding.severity, finding.count) for finding in report.findings}


def test_clean_rows_give_figures_and_no_findings() -> None:
    report = examine(Records.of(Demonstration, ROWS), ["birds"])
    assert (report.kind, report.records, report.duplicates, report.near_duplicates) == ("demonstrations", 6, 0, 0)
    assert report.findings == () and report.scripts == {"Latin": 6}
    assert report.lengths.unit == "words" and report.tokenizer is None
    assert list(report.lengths.whole) == [9 + 3] * 6


def test_exact_near_and_same_prompt_repeats_are_told_apart() -> None:
    same = ROWS[0]
    near = demonstration(91, ROWS[1].messages[0].content.upper(), ROWS[1].messages[1].content)
    other_answer = demonstration(92, ROWS[2].messages[0].content, "quite another thing, with a long explanation of it")
    report = examine(Records.of(Demonstration, [*ROWS, same, near, other_answer]), ["birds"])
    assert (report.duplicates, report.near_duplicates, report.same_prompt) == (1, 1, 3)
    assert checks(report) == {
        "duplicates": ("warning", 1),
        "near_duplicates": ("warning", 1),
        "same_prompt": ("note", 2),
    }


def test_comparisons_that_differ_in_their_ranks_alone_are_no_duplicates() -> None:
    prompt = (Message("user", "name a bird"),)
    rows = [
        Comparison(f"c{i}", "s", prompt, ("wren", "tree"), ranks) for i, ranks in enumerate([(1, 2), (2, 1), (1, 2)])
    ]
    assert examine(Records.of(Comparison, rows), ["birds"]).duplicates == 1


def test_dropped_rows_are_counted_by_reason_and_empty_answers_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": text} for text in ("b", " ", "", "c")] + [{"prompt": "a"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = examine(load(Source(str(path), on_bad_row="drop"), Demonstration), [str(path)])
    assert report.records == 2 and sum(report.dropped.values()) == 3
    assert checks(report)["empty_target"] == ("warning", 2) and checks(report)["dropped"] == ("warning", 3)


def test_a_prompt_that_is_also_in_the_evaluation_set_is_an_error_and_a_near_one_a_warning() -> None:
    def prompts(*texts: str) -> Records[Prompt]:
        return Records.of(Prompt, [Prompt(f"p{i}", "s", (Message("user", text),)) for i, text in enumerate(texts)])

    asked = ROWS[3].messages[0].content
    against = prompts(asked.upper(), asked + "?", "is a whale a fish")
    report = examine(Records.of(Demonstration, ROWS), ["birds"], against=against)
    assert report.against == {"records": 3, "shared": 1, "nearly_shared": 1}
    assert checks(report) == {"leak": ("error", 1), "near_leak": ("warning", 1)}
    assert report.findings[0].examples == ("p0",)
    assert checks(examine(Records.of(Demonstration, ROWS), ["birds"], against=prompts("is a whale a fish"))) == {}


def test_with_a_tokenizer_what_it_does_not_know_and_what_is_too_long_is_told() -> None:
    tokenizer: Any = quickstart_tokenizer()
    tokens = Tokens(tokenizer, "quickstart", "quickstart/1")
    known = [demonstration(i, "sort these words : fox dog", "dog fox .") for i in range(1)]
    clean = examine(Records.of(Demonstration, known), ["w"], tokens, max_length=64)
    assert clean.findings == () and clean.lengths.unit == "tokens" and clean.too_long == 0
    unknown = examine(Records.of(Demonstration, ROWS), ["w"], tokens, max_length=10)
    assert checks(unknown)["too_long"] == ("error", 6) and checks(unknown)["unknown_tokens"][0] == "warning"
    assert [finding.severity for finding in unknown.findings] == sorted(f.severity for f in unknown.findings)


def test_documents_have_lengths_and_no_prompts() -> None:
    records = Records.of(Document, [Document("t1", "s", "Wrens are small."), Document("t2", "s", "Herons are not.")])
    tokens = Tokens(quickstart_tokenizer(), "quickstart", "quickstart/1")
    report = examine(records, ["text"], tokens)
    assert len(report.lengths.whole) == 2 and len(report.lengths.answers) == 0


def test_the_report_as_json_holds_plain_values() -> None:
    row = examine(Records.of(Demonstration, [*ROWS, ROWS[0]]), ["birds"], max_length=5).as_json()
    assert json.loads(json.dumps(row)) == row
    assert {"kind", "source_format", "records", "dropped", "duplicates", "findings", "lengths", "scripts"} <= row.keys()
    assert all({"severity", "check", "text", "cure"} <= finding.keys() for finding in row["findings"])
