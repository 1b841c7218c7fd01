"""Columns and keys that carry meaning are read, refused or reported, whichever format a row is in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from test_formats_general import write

from data_schema import Comparison, DataError, Demonstration, Message, Prompt, Records, Source, load
from data_schema.formats.meaning import meanings, plain, rating_of, shown, verdict_of

Row = dict[str, Any]
ASKED, GOOD, BAD = "Name a tool.", "A saw.", "A cloud."
TALK = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": GOOD}]


def load_rows(folder: Path, rows: list[Row], kind: Any, ending: str = "jsonl", form: str = "auto") -> Records[Any]:
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(folder, rows, ending)
    return load(Source(str(path), form, on_bad_row="drop"), kind)


def demonstrations(folder: Path, row: Row, form: str = "auto") -> int:
    try:
        return len(load_rows(folder, [row], Demonstration, form=form))
    except DataError:
        return 0


SPELLINGS: dict[str, tuple[Any, Any]] = {
    "booleans": (True, False),
    "numbers": (1, 0),
    "floats": (1.0, 0.0),
    "signs": (1, -1),
    "digits": ("1", "0"),
    "words of booleans": ("True", "False"),
    "yes": ("yes", "no"),
    "good": ("good", "bad"),
    "Good": ("Good", "BAD"),
    "chosen": ("chosen", "rejected"),
    "accepted": ("accepted", "rejected"),
    "safe": ("safe", "unsafe"),
    "positive": ("positive", "negative"),
    "thumbs": ("thumbs_up", "thumbs_down"),
    "thumbs in two words": ("Thumbs up", "Thumbs down"),
}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("case", SPELLINGS)
def test_a_verdict_on_one_answer_is_understood_in_any_spelling(case: str, ending: str, tmp_path: Path) -> None:
    good, bad = SPELLINGS[case]
    rows = [{"prompt": ASKED, "completion": GOOD, "label": good}, {"prompt": ASKED, "completion": BAD, "label": bad}]
    (comparison,) = load_rows(tmp_path, rows, Comparison, ending)
    assert (comparison.responses, comparison.ranks) == ((GOOD, BAD), (1, 2))
    shown = load_rows(tmp_path, rows, Demonstration, ending)
    assert [record.messages[-1].content for record in shown] == [GOOD]
    assert shown.dropped == {"answer marked bad": 1}


@pytest.mark.parametrize(
    "column", ["is_safe", "is_correct", "accepted", "response_label", "kto_tag", "thumbs_up", "isCorrect", "Is Good"]
)
@pytest.mark.parametrize("names", [("prompt", "response"), ("question", "answer"), ("instruction", "output")])
def test_a_verdict_is_found_under_any_of_its_names(column: str, names: tuple[str, str], tmp_path: Path) -> None:
    rows = [{names[0]: ASKED, names[1]: text, column: text == GOOD} for text in (BAD, GOOD)]
    (comparison,) = load_rows(tmp_path, rows, Comparison)
    assert (comparison.responses, comparison.ranks) == ((BAD, GOOD), (2, 1))
    assert demonstrations(tmp_path, rows[0]) == 0 and demonstrations(tmp_path, rows[1]) == 1


@pytest.mark.parametrize("column", ["is_harmful", "toxicity", "flagged", "thumbs_down", "is_wrong"])
def test_the_name_of_a_fault_turns_the_verdict_round(column: str) -> None:
    assert (verdict_of(column, True), verdict_of(column, 0)) == (False, True)
    assert (verdict_of(column, "harmful"), verdict_of(column, "safe")) == (False, True)


@pytest.mark.parametrize("mark", ["harmful", "unharmful"])
def test_a_word_that_says_itself_what_it_means_is_not_turned_round(mark: str) -> None:
    assert verdict_of("response_harm_label", mark) is (mark == "unharmful")
    assert not meanings("prompt_harm_label") & {"verdict", "fault"}  # about the question


def test_a_verdict_that_is_unclear_missing_or_contradicted_is_an_error(tmp_path: Path) -> None:
    good = {"prompt": ASKED, "completion": GOOD, "label": True}
    for column, value in (("label", "maybe"), ("label", 3), ("label", 0.5), ("label", None), ("is_safe", False)):
        with pytest.raises(DataError, match=r"'label' must be true or false|the verdicts on the answer differ"):
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in (good, good, good | {column: value})))
            load(Source(str(path)), Demonstration)


# ---- what must not be learned, and what would not be seen

REFUSED: dict[str, Row] = {
    "weight": {"weight": 0},
    "weight as text": {"weight": "0"},
    "a weight between": {"weight": 0.5},
    "train": {"train": False},
    "loss": {"loss": 0},
    "masked": {"masked": True},
    "exclude": {"exclude": "yes"},
    "tools": {"tools": [{"name": "f"}]},
    "tools as text": {"tools": '[{"name": "f"}]'},
    "images": {"images": ["a.png"]},
    "audio": {"audio": {"path": "a.wav"}},
    "documents": {"documents": ["x"]},
    "a score": {"score": 0.1},
    "a quality in words": {"quality": "poor"},
    "a topic as label": {"label": "tools"},
    "a bad mark": {"response_harm_label": "harmful"},
    "toxic": {"toxic": True},
}
HARMLESS: dict[str, Row] = {
    "weight": {"weight": 1},
    "no weight": {"weight": None},
    "train": {"train": True},
    "no tools": {"tools": [], "functions": "[]", "images": None},
    "a topic": {"tag": "tools", "category": "x", "task_type": {"major": ["x"]}},
    "labels of a subject": {"label": {"ability": ["tools"]}},
    "not toxic": {"toxic": False, "redacted": False},
    "about the prompt": {"prompt_harm_label": "harmful", "input_quality": "good", "instruct_reward": 0.5},
    "a split": {"split": "test", "source": "x", "language": "en", "human_verified": False},
}
FORMS: dict[str, Row] = {
    "messages": {"messages": TALK},
    "ShareGPT": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": GOOD}]},
    "alpaca": {"instruction": ASKED, "input": "", "output": GOOD},
    "completion": {"prompt": ASKED, "completion": GOOD},
    "pair": {"question": ASKED, "answer": GOOD},
    "FLAN": {"inputs": ASKED, "targets": GOOD},
    "text": {"text": f"### Human: {ASKED}### Assistant: {GOOD}"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_may_be_bad_or_is_not_whole_is_no_demonstration(case: str, form: str, tmp_path: Path) -> None:
    assert demonstrations(tmp_path, FORMS[form]) == 1
    assert demonstrations(tmp_path, FORMS[form] | REFUSED[case]) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HARMLESS)
def test_other_columns_leave_a_row_a_demonstration(case: str, form: str, tmp_path: Path) -> None:
    assert demonstrations(tmp_path, FORMS[form] | HARMLESS[case]) == 1


def test_a_bad_answer_is_no_demonstration_even_if_the_format_is_named(tmp_path: Path) -> None:
    row = FORMS["completion"] | {"label": False}
    assert demonstrations(tmp_path, row, "prompt_completion") == 0
    assert demonstrations(tmp_path, FORMS["completion"] | {"label": True}, "prompt_completion") == 1


def test_pairs_that_must_not_be_learned_or_whose_prompt_is_not_whole_are_refused(tmp_path: Path) -> None:
    pair = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    for extra in ({"images": ["a.png"]}, {"tools": [{}]}, {"weight": 0}, {"masked": 1}, {"tie": True}):
        records = load_rows(tmp_path, [pair, pair | extra], Comparison)
        assert (len(records), sum(records.dropped.values())) == (1, 1)
    assert len(load_rows(tmp_path, [pair | {"score": 3, "id": 7}], Comparison)) == 1


def test_a_prompt_needs_no_verdict_but_all_that_is_seen(tmp_path: Path) -> None:
    assert len(load_rows(tmp_path, [{"prompt": ASKED, "label": "unsafe"}], Prompt)) == 1
    assert len(load_rows(tmp_path, [FORMS["completion"] | {"label": False}], Prompt)) == 1
    with pytest.raises(DataError, match="'images' has content that the model would not see"):
        load_rows(tmp_path, [{"prompt": ASKED, "images": ["a.png"]}], Prompt)


# ---- what nothing reads


def test_columns_that_nothing_reads_are_counted_and_those_that_may_matter_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "score": i or None, "topic": "x", "note": ""}
        for i in range(3)
    ]
    with caplog.at_level(logging.WARNING, logger="triptych.data"):
        records = load_rows(tmp_path, rows, Comparison)
    assert records.unread == {"score": 2, "topic": 3}
    (line,) = caplog.messages
    assert line.endswith("columns that may matter, but that format preference does not read: score (2 rows)")
    assert records.select([0]).unread == records.unread


def test_columns_that_a_format_reads_are_not_reported(tmp_path: Path) -> None:
    rows: list[tuple[Row, type]] = [
        (FORMS["alpaca"] | {"system": "Be brief.", "history": [["a", "b"]], "text": "Below .."}, Demonstration),
        (FORMS["pair"] | {"label": "good"}, Demonstration),
        ({"prompt": ASKED, "response": GOOD, "weight": None, "label": 1, "kto_tag": True}, Demonstration),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "chosen_rating": 2, "rejected_rating": 1}, Comparison),
        (
            {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": "a", "score_a": 2, "score_b": 1},
            Comparison,
        ),
        ({"prompt": ASKED, "responses": [GOOD, BAD], "scores": [2, 1]}, Comparison),
    ]
    for row, kind in rows:
        assert load_rows(tmp_path, [row], kind).unread == {}


# ---- keys of messages


def said(**last: Any) -> Row:
    return {"messages": [*TALK[:1], TALK[1] | last]}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": "no"}, {"masked": 1}, {"toxic": True}])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_an_earlier_answer_that_must_not_be_learned_is_read_and_not_learned(
    mark: Row, column: str, tmp_path: Path
) -> None:
    turns = [TALK[0], TALK[1] | mark, {"role": "user", "content": "And?"}, TALK[1] | {"weight": 1}]
    if column == "conversations":
        turns = [{"from": t.pop("role"), "value": t.pop("content"), **t} for t in map(dict, turns)]
    (record,) = load_rows(tmp_path, [{column: turns}], Demonstration)
    assert [message.content for message in record.messages] == [ASKED, GOOD, "And?", GOOD]
    assert [message.learned for message in record.messages] == [True, False, True, True]


def test_a_weight_between_0_and_1_on_an_earlier_answer_is_an_error(tmp_path: Path) -> None:
    turns = [TALK[0], TALK[1] | {"weight": 0.5}, {"role": "user", "content": "And?"}, TALK[1]]
    with pytest.raises(DataError, match="only weights of 0 and 1"):
        load_rows(tmp_path, [{"messages": turns}], Demonstration)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": 0}, {"masked": True}, {"toxic": True}])
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_a_last_answer_that_must_not_be_learned_is_no_demonstration(mark: Row, column: str, tmp_path: Path) -> None:
    turns = said(**mark)["messages"]
    if column == "conversations":
        turns = [
            {"from": t["role"], "value": t["content"], **(mark if t["role"] == "assistant" else {})} for t in turns
        ]
    with pytest.raises(DataError, match=r"the last answer of '\w+' is marked as"):
        load_rows(tmp_path, [{column: turns}], Demonstration)
    assert len(load_rows(tmp_path, [{column: turns}], Prompt)) == 1


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("key", ["tool_calls", "images", "reasoning_content", "rating", "anything"])
def test_keys_of_a_message_that_nobody_knows_are_errors_unless_they_are_empty(
    column: str, key: str, tmp_path: Path
) -> None:
    names = ("from", "value") if column == "conversations" else ("role", "content")
    turns = [{names[0]: turn["role"], names[1]: turn["content"]} for turn in TALK]
    turns[-1][key] = "x"
    with pytest.raises(DataError, match=f"also has '{key}'"):
        load_rows(tmp_path, [{column: turns}], Demonstration)
    turns[-1][key] = ""
    assert len(load_rows(tmp_path, [{column: turns}], Demonstration)) == 1


def test_names_ids_and_times_of_messages_change_nothing(tmp_path: Path) -> None:
    known = {"id": 1, "name": "ann", "language": "English", "timestamp": "t", "redacted": False, "hashed_ip": "x",
             "header": {"agent": "x"}, "turn_identifier": 7, "openai_moderation": [{"flagged": False}]}  # fmt: skip
    (record,) = load_rows(tmp_path, [said(**known)], Demonstration)
    assert record.messages == (Message("user", ASKED), Message("assistant", GOOD))


# ---- the table itself


def test_names_are_compared_in_plain_form() -> None:
    assert [plain(name) for name in ("Chosen-Rating", "isSafe", " response 1 ", "KTO_tag")] == [
        "chosen_rating",
        "is_safe",
        "response_1",
        "kto_tag",
    ]


def test_a_rating_is_no_verdict_and_a_verdict_no_rating() -> None:
    assert (verdict_of("score", 1), rating_of("score", "1")) == (None, 1.0)
    assert (verdict_of("rating", "good"), rating_of("rating", "good")) == (True, None)
    assert (verdict_of("label", 1), rating_of("label", 1)) == (True, None)
    assert (verdict_of("topic", True), rating_of("topic", 1)) == (None, None)
    assert (verdict_of("tag", 1), verdict_of("tag", "good"), verdict_of("tag", False)) == (None, True, False)


def test_a_value_in_a_message_is_short_and_shows_what_cannot_be_printed() -> None:
    assert shown({"a": "x" * 100}).endswith("...") and len(shown("x" * 100)) == 40
    assert "\u202e" not in shown("a\u202eb")
