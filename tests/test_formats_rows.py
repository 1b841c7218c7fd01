"""A row after the first ones is asked for its format too."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Document, Prompt, Source, load

PLAIN = [{"prompt": f"Say {i}.", "completion": str(i)} for i in range(20)]


def write(folder: Path, rows: list[dict[str, Any]], ending: str = "jsonl") -> str:
    path = folder / f"rows.{ending}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("extra", [{"label": False}, {"label": 1}, {"score": 2}, {"messages": [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}
]}], ids=lambda extra: next(iter(extra)))  # fmt: skip
def test_a_later_row_of_a_more_specific_format_is_an_error_that_names_it(extra: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, [*PLAIN, {"prompt": "Say no.", "completion": "Yes.", **extra}])
    with pytest.raises(DataError, match=r"rows.jsonl:21: the row is in format \w+, but the first rows"):
        load(Source(path), Demonstration)
    kept = load(Source(path, on_bad_row="drop"), Demonstration)
    assert (len(kept), len(kept.dropped)) == (20, 1)


def test_prompts_are_read_from_marked_rows_as_from_others(tmp_path: Path) -> None:
    path = write(tmp_path, [*PLAIN, {"prompt": "Say no.", "completion": "Yes.", "label": False}])
    assert len(load(Source(path), Prompt)) == 21


def test_rows_with_and_without_ratings_may_stand_in_one_file(tmp_path: Path) -> None:
    pair = {"prompt": "Say yes.", "chosen": "Yes.", "rejected": "No."}
    rated = [pair | {"chosen_rating": 3, "rejected_rating": rating} for rating in (1, 3, 5)]
    records = load(Source(write(tmp_path, [pair, pair, pair, pair, *rated])), Comparison)
    assert (len(records), records.dropped) == (5, {"tie": 1, "scores contradict the choice": 1})


def test_text_that_looks_like_a_conversation_is_a_document_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "Once."}, {"text": "### Human: Hi### Assistant: Ho."}, {"text": "Twice."}])
    assert len(load(Source(path), Document)) == 3


TALK = [{"role": "user", "content": 'Say "it\'s" here.'}, {"role": "assistant", "content": "It's here."}]


@pytest.mark.parametrize("text", [json.dumps(TALK), str(TALK)], ids=["JSON", "Python"])
def test_a_list_of_messages_as_text_is_read_as_a_list(text: str, tmp_path: Path) -> None:
    (record,) = load(Source(write(tmp_path, [{"messages": text}])), Demonstration)
    assert [message.content for message in record.messages] == [turn["content"] for turn in TALK]


def test_a_list_of_messages_as_text_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, [{"messages": TALK}, {"messages": "[{'role': 'user', 'content': 'a'} {'role': 'x'}]"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'messages' holds a list of messages as text"):
        load(Source(path), Demonstration)


def test_an_answer_that_is_json_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": "List it.", "completion": "[1, 2]"}, {"prompt": "[1, 2]", "completion": '{"role": 1}'}]
    records = load(Source(write(tmp_path, rows)), Demonstration)
    assert [message.content for record in records for message in record.messages] == [
        "List it.",
        "[1, 2]",
        "[1, 2]",
        '{"role": 1}',
    ]
