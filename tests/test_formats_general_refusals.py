"""What a row says beside its texts, and what belongs to its question, is read or the row is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Message, Prompt, Source, load
from data_schema.formats.general.refusals import refusal

Row = dict[str, Any]
ASKED, GOOD, BAD = "Name a metal.", "Tin.", "A cloud."
PAIR = {"question": ASKED, "answer": GOOD}
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": GOOD}]


def read(folder: Path, row: Row, kind: Any = Demonstration) -> list[Any]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return list(load(Source(str(path)), kind))


REFUSED: dict[str, tuple[Row, str]] = {
    "an invalid problem": (PAIR | {"problem_is_valid": "No"}, "'problem_is_valid' is \"No\""),
    "a problem that is not whole": (PAIR | {"problem_is_valid": "Incomplete"}, "'problem_is_valid' is \"Incomplete\""),
    "a guard's verdict": ({"messages": CHAT, "llama_guard_2": "unsafe"}, "'llama_guard_2' is \"unsafe\""),
    "a judge's verdict": ({"question": ASKED, "gpt4_response": BAD, "gpt4_harmful": 1}, "answer marked bad"),
    "a status": ({"prompt": ASKED, "completion": BAD, "status": "rejected"}, "answer marked bad"),
    "instructions for the template": (
        {"messages": CHAT, "chat_template_kwargs": {"custom_instructions": "Be brief.", "enable_thinking": False}},
        "'chat_template_kwargs' has content that the model would not see",
    ),
    "an input beside the prompt": (
        {"prompt": "Translate.", "input": "Zinn", "response": GOOD},
        "'input' may belong to the question",
    ),
    "a question beside the instruction": (
        {"instruction": "Answer.", "question": ASKED, "output": GOOD},
        "'question' may belong to the question",
    ),
    "a context beside the prompt": (
        {"prompt": "Sum it up.", "context": "Tin is a metal.", "completion": GOOD},
        "'context' may belong to the question",
    ),
    "choices in columns of letters": (PAIR | {"A": "Tin", "B": "Oak"}, "'A' belongs to the question"),
    "choices in numbered columns": (PAIR | {"option1": "Tin", "option2": "Oak"}, "'option1' belongs to the question"),
    "input and context": (
        {"instruction": "Sum it up.", "input": "Tin.", "context": "Zinc.", "output": GOOD},
        "'input' and 'context' both have content",
    ),
    "chat markup inside a message": (
        {"messages": [{"role": "user", "content": f"<|im_start|>user\n{ASKED}<|im_end|>"}, CHAT[1]]},
        "begins with chat markup",
    ),
    "answers of two models": (
        {"question": ASKED, "gpt4_response": GOOD, "claude_response": BAD},
        "no known format|not demonstrations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_whose_meaning_would_be_lost_is_no_demonstration(case: str, tmp_path: Path) -> None:
    row, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


READ: dict[str, tuple[Row, str]] = {
    "a valid problem": (PAIR | {"problem_is_valid": "Yes"}, ASKED),
    "switches for the template": ({"messages": CHAT, "chat_template_kwargs": {"enable_thinking": True}}, ASKED),
    "a guard that lets it pass": ({"messages": CHAT, "llama_guard_2": "safe"}, ASKED),
    "a code as status": ({"prompt": ASKED, "completion": GOOD, "status": 0}, ASKED),
    "a prompt that repeats its input": (
        {"prompt": f"Hello. {ASKED}", "input": ASKED, "response": GOOD},
        f"Hello. {ASKED}",
    ),
    "an instruction and its context": (
        {"instruction": "Sum it up.", "context": "Tin.", "output": GOOD},
        "Sum it up.\n\nTin.",
    ),
    "a context that the instruction repeats": (
        {"instruction": f"Tin. {ASKED}", "context": "Tin.", "output": GOOD},
        f"Tin. {ASKED}",
    ),
    "the answer of one model": ({"question": ASKED, "claude_answer": GOOD}, ASKED),
    "a rewritten question": (PAIR | {"orig_question": "Metal?", "orig_answer": "Tin"}, ASKED),
    "a context that is answered": ({"Context": ASKED, "Response": GOOD}, ASKED),
    "reasoning beside the answer": (PAIR | {"thinking": "Metals are .."}, ASKED),
}


@pytest.mark.parametrize("case", READ)
def test_a_row_that_says_nothing_against_it_is_a_demonstration(case: str, tmp_path: Path) -> None:
    row, asked = READ[case]
    (record,) = read(tmp_path, row)
    assert record.messages == (Message("user", asked), Message("assistant", GOOD))


def test_a_question_without_an_answer_is_a_prompt(tmp_path: Path) -> None:
    for row in ({"question": ASKED}, {"instruction": ASKED, "input": ""}, {"query": ASKED, "id": 1}):
        assert read(tmp_path, row, Prompt)[0].prompt == (Message("user", ASKED),)


BETTER: dict[str, Row] = {
    "a rejected response": {"query": ASKED, "response": GOOD, "rejected_response": BAD},
    "messages and a rejected response": {"messages": CHAT, "rejected_response": BAD},
    "ranks from 0": {"prompt": ASKED, "responses": [GOOD, BAD], "ranks": [0, 1]},
    "ranks as text": {"prompt": ASKED, "responses": [GOOD, BAD], "ranks": ["1", "2.0"]},
    "a verdict that repeats the answer": {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "chosen": GOOD},
    "a judge's scores": {
        "prompt": ASKED,
        "chosen": GOOD,
        "rejected": BAD,
        "chosen_rm_score": 2,
        "rejected_rm_score": 1,
    },
}


@pytest.mark.parametrize("case", BETTER)
def test_a_pair_in_other_words_is_a_comparison(case: str, tmp_path: Path) -> None:
    (record,) = read(tmp_path, BETTER[case], Comparison)
    assert (record.prompt, record.responses, record.ranks) == ((Message("user", ASKED),), (GOOD, BAD), (1, 2))


CONTRADICTED: dict[str, Row] = {
    "a margin": {"margin": -1.0},
    "a difference": {"score_diff": "-2"},
    "a judge's scores": {"chosen_rm_score": 0.1, "rejected_rm_score": 0.9},
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_a_pair_whose_scores_contradict_the_choice_compares_nothing(case: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scores contradict the choice"):
        read(tmp_path, {"prompt": ASKED, "chosen": GOOD, "rejected": BAD} | CONTRADICTED[case], Comparison)


def test_a_ranking_that_may_be_an_order_is_an_error(tmp_path: Path) -> None:
    row = {"prompt": ASKED, "responses": [GOOD, BAD, "Oak."], "ranking": [2, 3, 1]}
    with pytest.raises(DataError, match="may be a rank for each answer or the answers in order"):
        read(tmp_path, row, Comparison)
    assert read(tmp_path, row | {"ranking": [1, 3, 2]}, Comparison)[0].ranks == (1, 3, 2)


def test_documents_are_never_refused() -> None:
    row = {"text": "Tin.", "is_harmful": True, "weight": 0}
    assert refusal(row, ("text",), "documents", judges=False, named=False) is None
    assert refusal(row, ("text",), "demonstrations", judges=False, named=False) is not None
