"""Rows whose columns mean what a format needs, whatever they are called, become the records that they mean."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Message, Prompt, Records, Source, load
from data_schema.formats.comparisons import GENERAL_COMPARISONS
from data_schema.formats.table import FORMATS, recognise

Row = dict[str, Any]
Q, GOOD, BAD = "Name a fish.", "A cod.", "A brick."


def said(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    lead = (Message("system", system),) if system else ()
    return (*lead, *(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)))


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in said(*contents)]


def write(folder: Path, rows: list[Row], ending: str = "jsonl") -> str:
    path = folder / f"rows.{ending}"
    with path.open("w", newline="", encoding="utf-8") as out:
        if ending == "csv":
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def read(folder: Path, rows: list[Row], kind: Any, ending: str = "jsonl") -> Records[Any]:
    return load(Source(write(folder, rows, ending), on_bad_row="drop"), kind)


ONE = [said(Q, GOOD)]  # conversations
BETTER_FIRST, BETTER_SECOND = [(said(Q), (GOOD, BAD), (1, 2))], [(said(Q), (BAD, GOOD), (2, 1))]

# ---- one question, one answer

ANSWERED: dict[str, tuple[Row, str, list[tuple[Message, ...]]]] = {
    "question and answer": ({"question": Q, "answer": GOOD}, "pair", ONE),
    "query and response": ({"query": Q, "response": GOOD, "type": "x", "original_question": "Fish?"}, "pair", ONE),
    "problem and solution": ({"problem": Q, "level": "1", "type": "sea", "solution": GOOD}, "pair", ONE),
    "a worked solution and its result": ({"problem": Q, "solution": GOOD, "answer": "cod"}, "pair", ONE),
    "input and target": ({"kind": "sea", "input": Q, "target": GOOD}, "pair", ONE),
    "input and output": ({"input": Q, "output": GOOD}, "pair", ONE),
    "names in capitals": ({"Question": Q, "Answer": GOOD}, "pair", ONE),
    "messages and an output": ({"input": talk(Q), "output": GOOD, "reasoning": "off"}, "pair", ONE),
    "a generated solution": ({"problem": Q, "generated_solution": GOOD, "expected_answer": "1"}, "pair", ONE),
    "earlier turns": (
        {"question": Q, "answer": GOOD, "history": [["Hi", "Ho."]]}, "pair", [said("Hi", "Ho.", Q, GOOD)]
    ),
    "earlier turns before a prompt": (
        {"prompt": Q, "response": GOOD, "history": [["Hi", "Ho."]]}, "prompt_response", [said("Hi", "Ho.", Q, GOOD)]
    ),
    "conversation": (
        {"conversation": [{**turn, "toxic": False, "redacted": False, "hashed_ip": "x"} for turn in talk(Q, GOOD)]},
        "conversation",
        ONE,
    ),
    "conversations with roles": ({"conversations": talk(Q, GOOD)}, "conversation", ONE),
    "conversation of people": (
        {"conversation": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}]}, "conversation", ONE
    ),
    "turns of input and output": (
        {"conversation": [{"input": Q, "output": GOOD}, {"input": "Why?", "output": "So."}]},
        "conversation",
        [said(Q, GOOD, "Why?", "So.")],
    ),
    "speakers": (
        {"dialogue": [{"speaker": "user", "text": Q}, {"speaker": "bot", "text": GOOD}]}, "conversation", ONE
    ),
    "the whole conversation beside its first turn": (
        {"instruction": Q, "response": GOOD, "conversations": [
            {"from": who, "value": text}
            for who, text in (("human", Q), ("gpt", GOOD), ("human", "Why?"), ("gpt", "So."))
        ]},
        "sharegpt",
        [said(Q, GOOD, "Why?", "So.")],
    ),
    "a system prompt as instruction": (
        {"instruction": "You are an AI assistant. Be brief.", "input": Q, "output": GOOD},
        "alpaca",
        [said(Q, GOOD, system="You are an AI assistant. Be brief.")],
    ),
    "instances with their whole question": (
        {"instruction": "Tell.", "instances": [
            {"instruction_with_input": "Tell: cod", "input": "cod", "constraints": "None.", "output": GOOD}
        ]},
        "self_instruct",
        [said("Tell: cod", GOOD)],
    ),
    "a judge's own data": (
        {"orig_instruction": Q, "orig_response_A": BAD, "orig_response_B": GOOD, "orig_preference": "B",
         "instruction": "Judge.", "output": "B", "input": ""},
        "prometheus",
        [said("Judge.", "B")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERED)
def test_a_question_and_an_answer_under_any_name_are_a_demonstration_and_a_prompt(case: str, tmp_path: Path) -> None:
    row, name, conversations = ANSWERED[case]
    assert recognise(row) == name
    assert [record.messages for record in read(tmp_path, [row], Demonstration)] == conversations
    assert [record.prompt for record in read(tmp_path, [row], Prompt)] == [talk[:-1] for talk in conversations]


NO_ANSWER: dict[str, Row] = {
    "choices": {"question": Q, "choices": ["cod", "brick"], "answer": "cod"},
    "a number of a choice": {"question": Q, "choices": ["cod", "brick"], "answer": 0},
    "options": {"question": Q, "answer": "cod", "options": {"A": "cod"}},
    "a passage": {"question": Q, "passage": "Cod are fish.", "answer": "cod"},
    "a context": {"context": "Cod are fish.", "question": Q, "answer": "cod"},
    "yes or no as a boolean": {"question": "Is it?", "answer": True},
    "a list of right answers": {"question": Q, "answer": ["cod", "A cod"]},
    "an object": {"question": Q, "answer": {"value": "cod", "aliases": []}},
    "a best of several answers": {"question": Q, "best_answer": GOOD, "correct_answers": [GOOD]},
    "two answers": {"question": Q, "answer": GOOD, "response": BAD},
    "two questions": {"question": Q, "problem": "Name a bird.", "answer": GOOD},
    "a list of outputs": {"prompt": Q, "outputs": [GOOD, BAD]},
    "steps with labels": {"prompt": Q, "completions": ["One.", "Two."], "labels": [True, False]},
    "two messages of two roles": {"role_1": "x", "message_1": Q, "message_2": GOOD},
    "an answer that goes on": {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "response": f"{GOOD}\n\nHuman: And?"},
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_a_row_whose_answer_cannot_be_told_is_no_demonstration(case: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(tmp_path, [NO_ANSWER[case]], Demonstration)


def test_the_answer_stays_in_the_meta_of_a_prompt_for_a_judge(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, [{"question": Q, "answer": "cod", "topic": "sea"}], Prompt)
    assert prompt.meta == {"answer": "cod", "topic": "sea"}


# ---- a better and a worse answer

CHOSEN, REJECTED = talk(Q, GOOD), talk(Q, BAD)
CHOICES: dict[str, tuple[Row, str]] = {
    "question": ({"question": Q, "chosen": GOOD, "rejected": BAD}, "choice"),
    "chosen_response": ({"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD}, "choice"),
    "response_chosen": ({"question": Q, "history": [], "response_chosen": GOOD, "response_rejected": BAD}, "choice"),
    "preferred": ({"prompt": Q, "preferred": GOOD, "dispreferred": BAD}, "choice"),
    "better": ({"question": Q, "better_response": GOOD, "worse_response": BAD}, "choice"),
    "y_w": ({"prompt": Q, "y_w": GOOD, "y_l": BAD}, "choice"),
    "pos": ({"prompt": Q, "pos_resp": GOOD, "neg_resp": BAD}, "choice"),
    "OpenAI": (
        {"input": {"messages": talk(Q), "tools": [], "parallel_tool_calls": True}, "preferred_output": CHOSEN[1:],
         "non_preferred_output": REJECTED[1:]},
        "choice",
    ),
    "messages and texts": ({"messages": talk(Q), "chosen": GOOD, "rejected": BAD}, "choice"),
    "messages and messages": ({"messages": talk(Q), "chosen": CHOSEN[1], "rejected": REJECTED[1]}, "choice"),
    "conversations and messages": ({"conversations": talk(Q), "chosen": CHOSEN[1], "rejected": REJECTED[1]}, "choice"),
    "a trajectory": ({"trajectory": [{"from": "user", "value": Q}], "chosen": GOOD, "rejected": BAD}, "choice"),
    "a context of turns": (
        {"context": [{"role": "human", "text": Q}], "chosen": {"role": "assistant", "text": GOOD},
         "rejected": {"role": "assistant", "text": BAD}},
        "choice",
    ),
    "an instruction beside whole conversations": (
        {"instruction": Q, "responses": [GOOD, BAD], "chosen": CHOSEN, "rejected": REJECTED}, "choice"
    ),
    "the whole conversation beside the pair": (
        {"conversation": [{"input": Q, "output": GOOD}], "prompt": Q, "chosen": CHOSEN, "rejected": REJECTED,
         "rating_chosen": 5, "rating_rejected": 2},
        "scored_preference",
    ),
    "ratings": (
        {"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD, "chosen_avg_rating": "4.5",
         "rejected_avg_rating": "1"},
        "choice",
    ),
    "magnitude": ({"chosen": CHOSEN, "rejected": REJECTED, "magnitude": 3}, "preference_implicit"),
    "transcripts": (
        {"chosen": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{GOOD}<|im_end|>",
         "rejected": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{BAD}<|im_end|>"},
        "choice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_a_better_and_a_worse_answer_under_any_name_are_a_comparison(case: str, tmp_path: Path) -> None:
    row, name = CHOICES[case]
    assert recognise(row) == name
    records = read(tmp_path, [row], Comparison)
    assert [(record.prompt, record.responses, record.ranks) for record in records] == BETTER_FIRST
    assert [record.messages for record in read(tmp_path, [row], Demonstration)] == ONE
    assert [record.prompt for record in read(tmp_path, [row], Prompt)] == [said(Q)]


@pytest.mark.parametrize("name", ["margin", "magnitude", "preference_strength"])
@pytest.mark.parametrize(
    "pair", [{"prompt": Q}, {"question": Q}, {"prompt": Q, "score_chosen": 3, "score_rejected": 1}]
)
def test_a_margin_is_kept_whatever_it_is_called(name: str, pair: Row, tmp_path: Path) -> None:
    (record,) = read(tmp_path, [pair | {"chosen": GOOD, "rejected": BAD, name: 2}], Comparison)
    assert record.margin == 2.0


PAIR = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
UNDECIDED: dict[str, tuple[Row, str]] = {
    "equal ratings": (PAIR | {"rating_chosen": 4, "rating_rejected": 4.0}, "tie"),
    "equal scores as text": (PAIR | {"chosen_score": "4", "rejected_score": "4"}, "tie"),
    "a contradiction": (PAIR | {"rating_chosen": 2, "rating_rejected": 5}, "scores contradict the choice"),
    "a strength of 0": (PAIR | {"preference_strength": 0}, "tie"),
    "a magnitude of 0": (PAIR | {"magnitude": 0}, "tie"),
    "a mark": (PAIR | {"is_tie": True}, "'is_tie' says that neither answer is better"),
    "a status": (PAIR | {"status": "tie"}, "'status' says that neither answer is better"),
    "only a part of an answer": (PAIR | {"initial_reason_steps": "One."}, "'initial_reason_steps' has content"),
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_a_pair_that_does_not_decide_compares_nothing(case: str, tmp_path: Path) -> None:
    row, reason = UNDECIDED[case]
    records = read(tmp_path, [PAIR, row], Comparison)
    assert len(records) == 1
    assert [found.startswith(reason) for found in records.dropped] == [True]


def test_columns_that_are_no_preference_are_not_read_as_one() -> None:
    for row in ({"query": Q, "positive": GOOD, "negative": BAD}, {"sentence1": Q, "sentence2": GOOD, "label": 1}):
        with pytest.raises(DataError, match="no known format has the columns"):
            recognise(row)


# ---- two answers and a verdict

TWO = {"prompt": Q, "response_a": BAD, "response_b": GOOD}
VERDICTS: dict[str, Row] = {
    "a letter": TWO | {"winner": "b"},
    "a capital": TWO | {"preference": "B"},
    "a model": TWO | {"winner": "model_b", "model_a": "x", "model_b": "y"},
    "the name of a model": TWO | {"winner": "y", "model_a": "x", "model_b": "y"},
    "the column": TWO | {"preferred": "response_b"},
    "a sign": TWO | {"label": "B>A"},
    "another sign": TWO | {"label": "A<<B"},
    "words": TWO | {"verdict": "Response B is better"},
    "an index": TWO | {"chosen_index": 1},
    "ratings": TWO | {"score_a": 1, "score_b": 5},
    "ratings by another name": TWO | {"response_a_rating": 1, "response_b_rating": "2"},
    "winners": TWO | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    "two verdicts that agree": TWO | {"winner": "b", "preferred": "B"},
    "an original": {
        "orig_instruction": Q, "orig_response_A": BAD, "orig_response_B": GOOD, "orig_preference": "B",
        "instruction": "Judge.", "output": "B",
    },
    "numbers from 0": {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
    "numbers from 1": {"question": Q, "answer_1": BAD, "answer_2": GOOD, "label": "2"},
    "safety": {"prompt": Q, "response_0": BAD, "response_1": GOOD, "is_response_0_safe": False,
               "is_response_1_safe": True},
    "safety and help": {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1,
                        "safer_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True},
    "a signed preference": {"context": talk(Q), "response1": BAD, "response2": GOOD, "overall_preference": 2},
    "conversations": {"conversation_a": talk(Q, BAD), "conversation_b": talk(Q, GOOD), "winner": "model_b",
                      "turn": 1},
    "conversations in parts": {
        "conversation_a": [{"role": m["role"], "content": [{"type": "text", "text": m["content"], "image": None}]}
                           for m in talk(Q, BAD)],
        "conversation_b": talk(Q, GOOD), "winner": "model_b",
    },
    "conversations with ratings": {"conv_A": talk(Q, BAD), "conv_A_rating": 0.0, "conv_B": talk(Q, GOOD),
                                   "conv_B_rating": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_between_two_answers_is_understood_in_any_spelling(case: str, tmp_path: Path) -> None:
    records = read(tmp_path, [VERDICTS[case]], Comparison)
    assert [(record.prompt, record.responses, record.ranks) for record in records] == BETTER_SECOND
    if case != "an original":  # a judge's data, which demonstrate judging
        assert [record.messages for record in read(tmp_path, [VERDICTS[case]], Demonstration)] == ONE


def test_an_arena_in_csv_holds_its_turns_as_json(tmp_path: Path) -> None:
    row = {"model_a": "x", "model_b": "y", "prompt": json.dumps([Q]), "response_a": json.dumps([BAD])}
    row |= {"response_b": json.dumps([GOOD]), "winner_model_a": "0", "winner_model_b": "1", "winner_tie": "0"}
    (record,) = read(tmp_path, [row], Comparison, "csv")
    assert [(record.prompt, record.responses, record.ranks)] == BETTER_SECOND
    assert [prompt.prompt for prompt in read(tmp_path, [row], Prompt, "csv")] == [said(Q)]
    longer = {column: json.dumps([*json.loads(row[column]), "x"]) for column in ("prompt", "response_a", "response_b")}
    with pytest.raises(DataError, match="prompts differ: 1"):
        read(tmp_path, [row | longer], Comparison, "csv")


NOT_SAID: dict[str, tuple[Row, str]] = {
    "a tie": (TWO | {"winner": "tie"}, "tie|neither answer is better"),
    "both bad": (TWO | {"winner": "tie (bothbad)"}, "tie|neither answer is better"),
    "no verdict": (TWO | {"winner": None}, "no verdict"),
    "a word that says nothing": (
        TWO | {"winner": "both fine"},
        "'winner' must say whether 'response_a' or 'response_b'",
    ),
    "a number without a meaning": (TWO | {"label": 1}, "'label' must say whether"),
    "a boolean": (TWO | {"preferred": True}, "'preferred' must say whether"),
    "verdicts that differ": (TWO | {"winner": "a", "preferred": "b"}, "verdicts disagree"),
    "ratings against it": (TWO | {"winner": "a", "score_a": 1, "score_b": 5}, "scores contradict the choice"),
    "other conversations": (
        {"conversation_a": talk("Hi", GOOD), "conversation_b": talk(Q, BAD), "winner": "model_a"},
        "prompts differ",
    ),
}


@pytest.mark.parametrize("case", NOT_SAID)
def test_an_unclear_verdict_is_never_a_guess(case: str, tmp_path: Path) -> None:
    row, reason = NOT_SAID[case]
    with pytest.raises(DataError, match=f"no comparisons left: all were dropped .*({reason})"):
        read(tmp_path, [row], Comparison)
    with pytest.raises(DataError, match="no demonstrations left"):
        read(tmp_path, [row], Demonstration)


def test_the_better_of_two_bad_answers_is_no_demonstration(tmp_path: Path) -> None:
    row = {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 0}
    row |= {"is_response_0_safe": False, "is_response_1_safe": False}
    assert len(read(tmp_path, [row], Comparison)) == 1
    with pytest.raises(DataError, match="the better answer is marked bad: 1"):
        read(tmp_path, [row], Demonstration)


def test_of_two_verdicts_one_can_be_chosen_by_name(tmp_path: Path) -> None:
    row = {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0}
    path = write(tmp_path, [row])
    with pytest.raises(DataError, match="verdicts disagree: 1"):
        load(Source(path), Comparison)
    for name, ranks in (("safe_rlhf_better", (2, 1)), ("safe_rlhf_safer", (1, 2))):
        assert [record.ranks for record in load(Source(path, name), Comparison)] == [ranks]


# ---- lists of rated answers

LISTS: dict[str, Row] = {
    "ratings": {"input": Q, "generations": [BAD, GOOD], "ratings": [1, 5.0]},
    "scores": {"prompt": Q, "responses": [BAD, GOOD], "scores": [0.1, 0.9]},
    "ranks": {"prompt": Q, "completions": [BAD, GOOD], "ranks": [2, 1]},
    "votes": {"question": Q, "answers": [{"text": BAD, "pm_score": 0}, {"text": GOOD, "pm_score": 5}]},
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_answers_is_ranked_by_the_list_of_ratings(case: str, tmp_path: Path) -> None:
    records = read(tmp_path, [LISTS[case]], Comparison)
    assert [(record.prompt, record.responses, record.ranks) for record in records] == BETTER_SECOND
    assert [record.messages for record in read(tmp_path, [LISTS[case]], Demonstration)] == ONE


def test_a_list_of_answers_alone_compares_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives prompts, not comparisons"):
        read(tmp_path, [{"prompt": Q, "responses": [GOOD, BAD]}], Comparison)


def test_a_repeated_answer_of_a_ranked_list_is_left_out_with_its_copies(tmp_path: Path) -> None:
    records = read(tmp_path, [{"instruction": Q, "output": [GOOD, BAD, "A ray.", BAD]}], Comparison)
    assert [(record.responses, record.ranks) for record in records] == [((GOOD, "A ray."), (1, 2))]
    assert records.dropped == {"equal texts": 2}


# ---- rated answers


@pytest.mark.parametrize("column", ["score", "rating", "reward", "gpt4_rating", "response_quality"])
def test_rated_answers_to_one_prompt_are_compared_and_demonstrate_nothing(column: str, tmp_path: Path) -> None:
    rows = [{"prompt": Q, "response": BAD, column: 1}, {"prompt": Q, "response": GOOD, column: 4.5}]
    records = read(tmp_path, rows, Comparison)
    assert records.format == "rated"
    assert [(record.prompt, record.responses, record.ranks) for record in records] == BETTER_SECOND
    with pytest.raises(DataError, match=f"'{column}' rates the answer, so it may be a bad one"):
        read(tmp_path, rows, Demonstration)
    assert [record.prompt for record in read(tmp_path, rows, Prompt)] == [said(Q)]


def test_whoever_names_the_format_of_rated_answers_learns_them_all(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": Q, "response": GOOD, "score": 1}])
    records = load(Source(path, "prompt_response"), Demonstration)
    assert ([record.messages for record in records], records.unread) == (ONE, {"score": 1})


# ---- a system prompt in a column of its own

WITH_SYSTEM: dict[str, tuple[Row, type]] = {
    "messages": ({"messages": talk(Q, GOOD)}, Demonstration),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}]}, Demonstration
    ),
    "alpaca": ({"instruction": Q, "output": GOOD}, Demonstration),
    "completion": ({"prompt": Q, "completion": GOOD}, Demonstration),
    "response": ({"prompt": Q, "response": GOOD}, Demonstration),
    "pair": ({"question": Q, "answer": GOOD}, Demonstration),
    "FLAN": ({"inputs": Q, "targets": GOOD}, Demonstration),
    "OpenOrca": ({"question": Q, "response": GOOD}, Demonstration),
    "preference": (PAIR, Comparison),
    "preference of messages": ({"prompt": talk(Q), "chosen": CHOSEN[1:], "rejected": REJECTED[1:]}, Comparison),
    "choice": ({"question": Q, "chosen": GOOD, "rejected": BAD}, Comparison),
    "scores": (PAIR | {"score_chosen": 2, "score_rejected": 1}, Comparison),
    "duel": (TWO | {"winner": "b"}, Comparison),
    "ranking": ({"instruction": Q, "output": [GOOD, BAD]}, Comparison),
    "prompt": ({"prompt": Q}, Prompt),
}  # fmt: skip


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message", "custom_system_prompt"])
@pytest.mark.parametrize("case", WITH_SYSTEM)
def test_a_system_prompt_in_a_column_of_its_own_is_the_system_message(case: str, column: str, tmp_path: Path) -> None:
    row, kind = WITH_SYSTEM[case]
    (record,) = read(tmp_path, [row | {column: "Be brief."}], kind)
    asked = said(Q, system="Be brief.")
    assert (record.messages[:-1] if isinstance(record, Demonstration) else record.prompt) == asked
    assert column not in record.meta
    (record,) = read(tmp_path, [row | {column: ""}], Prompt)
    assert record.prompt == said(Q)


def test_answers_under_other_system_prompts_are_not_paired(tmp_path: Path) -> None:
    rows = [
        {"system": "Be brief.", "prompt": Q, "completion": GOOD, "label": 1},
        {"system": "Be brief.", "prompt": Q, "completion": BAD, "label": 0},
        {"system": "Be long.", "prompt": Q, "completion": "A rock.", "label": 0},
    ]
    (record,) = read(tmp_path, rows, Comparison)
    assert (record.prompt, record.responses) == (said(Q, system="Be brief."), (GOOD, BAD))


def test_two_system_prompts_are_an_error_unless_they_are_the_same(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be brief."}, *talk(Q, GOOD)]
    (record,) = read(tmp_path, [{"system": "Be brief.", "messages": own}], Demonstration)
    assert record.messages == said(Q, GOOD, system="Be brief.")
    for row in (
        {"system": "Be long.", "messages": own},
        {"system": "A", "system_prompt": "B", "messages": talk(Q, GOOD)},
    ):
        with pytest.raises(DataError, match=r"no demonstrations left: all were dropped \(.*system"):
            read(tmp_path, [row], Demonstration)


def test_every_general_format_of_comparisons_is_used_in_some_test_here() -> None:
    named = {"kto_pair", "rated"}  # tested in the file of columns' meanings, and above
    rows = [row for row, _ in CHOICES.values()] + [*VERDICTS.values(), *LISTS.values()]
    assert {recognise(row) for row in rows} | named >= set(GENERAL_COMPARISONS)
    assert {"safe_rlhf", "prometheus"} <= {recognise(row) for row in rows} <= set(FORMATS)
