"""Records are whole and right at birth, and survive the way to plain values and back."""

import dataclasses
from typing import Any

import pytest

from data_schema import (
    Comparison,
    DataError,
    Demonstration,
    Document,
    Message,
    Prompt,
    Records,
    from_dict,
    prompt_text,
    to_dict,
)

USER, ANSWER, SYSTEM = Message("user", "Hi?"), Message("assistant", "Hello."), Message("system", "Be kind.")


def comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {"prompt": (USER,), "responses": ("a", "b", "c"), "ranks": (2, 1, 2)}
    return Comparison("c1", "test", **(values | changes))


RECORDS = [
    Demonstration("d1", "test", (SYSTEM, USER, ANSWER), group="g", meta={"category": "x", "n": [1, {"é": None}]}),
    comparison(labeler="ann", margin=0.5),
    Prompt("p1", "test", (USER, ANSWER, USER)),
    Document("t1", "test", "Once ...\n"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_the_way_to_plain_values_and_back(record: Any) -> None:
    assert from_dict(type(record), to_dict(record)) == record


def test_an_answer_that_is_not_learned_survives_plain_values_and_an_arrow_table() -> None:
    record = Demonstration("d", "test", (USER, Message("assistant", "No.", learned=False), USER, ANSWER))
    for back in (from_dict(Demonstration, to_dict(record)), Records.of(Demonstration, [record])[0]):
        assert [message.learned for message in back.messages] == [True, False, True, True]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_are_frozen_and_hashable(record: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.id = "other"
    assert {record: 1}[record] == 1


def test_lists_become_tuples_at_birth() -> None:
    assert comparison(prompt=[USER], responses=["a", "b"], ranks=[1, 2]).ranks == (1, 2)


BAD_TURNS: dict[str, tuple[tuple[Message, ...], str]] = {
    "no messages": ((), "must end with the assistant, found no messages"),
    "ends with the user": ((USER, ANSWER, USER), "must end with the assistant, found user"),
    "two users in a row": ((USER, USER, ANSWER), "must alternate .* found user user assistant"),
    "starts with the assistant": ((ANSWER, USER, ANSWER), "must alternate"),
    "system in the middle": ((USER, SYSTEM, ANSWER), "must alternate"),
    "only a system message": ((SYSTEM,), "must end with the assistant, found system"),
}


@pytest.mark.parametrize("case", BAD_TURNS)
def test_a_demonstration_alternates_and_ends_with_the_assistant(case: str) -> None:
    messages, error = BAD_TURNS[case]
    with pytest.raises(DataError, match=f"'messages' {error}") as caught:
        Demonstration("d", "test", messages)
    assert caught.value.field == "messages"


def test_a_prompt_ends_with_the_user() -> None:
    with pytest.raises(DataError, match="'prompt' must end with the user, found assistant"):
        Prompt("p", "test", (USER, ANSWER))


BAD_COMPARISONS: dict[str, tuple[dict[str, Any], str]] = {
    "one response": ({"responses": ("a",), "ranks": (1,)}, "'responses' must have two or more, found 1"),
    "a rank too few": ({"ranks": (1, 2)}, "found 2 for 3"),
    "rank zero": ({"ranks": (0, 1, 2)}, "from 1 .best., found a number .0."),
    "rank true": ({"ranks": (True, 1, 2)}, "found a boolean .true."),
    "rank 1.5": ({"ranks": (1.5, 1, 2)}, "found a number .1.5."),
    "an empty response": ({"responses": ("a", " ", "c")}, r"'responses\[1\]' is empty"),
    "a boolean response": ({"responses": ("a", True, "c")}, r"'responses\[1\]' must be text, found a boolean .true."),
    "equal texts, other ranks": ({"responses": ("a", "a\n", "c")}, "different ranks are the same text"),
    "an infinite margin": ({"margin": float("inf")}, "'margin' must be a finite number"),
    "an empty labeler": ({"labeler": ""}, "'labeler' is empty"),
}


@pytest.mark.parametrize("case", BAD_COMPARISONS)
def test_a_comparison_that_cannot_be_learned_from_is_refused(case: str) -> None:
    changes, error = BAD_COMPARISONS[case]
    with pytest.raises(DataError, match=error):
        comparison(**changes)


def test_the_same_text_twice_at_one_rank_is_a_tie() -> None:
    assert comparison(responses=("a", "b", "a")).ranks == (2, 1, 2)


def test_of_a_pair_the_error_speaks_of_chosen_and_rejected() -> None:
    with pytest.raises(DataError, match="chosen and rejected are the same text"):
        comparison(responses=("a", "a"), ranks=(1, 2))


@pytest.mark.parametrize(
    "role, content, error",
    [
        ("human", "x", "'role' must be one of system, user, assistant, found 'human'"),
        ("user", "", "'content' is empty"),
        ("user", " \n", "'content' is empty"),
        ("user", True, r"'content' must be text, found a boolean \(true\)"),
        ("user", None, "found nothing"),
        ("user", "\ud83d", "half a surrogate pair"),
    ],
)
def test_a_message_has_a_known_role_and_some_text(role: Any, content: Any, error: str) -> None:
    with pytest.raises(DataError, match=error):
        Message(role, content)


def test_unknown_keys_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(DataError, match=r"unknown key 'promt' for prompts. Did you mean 'prompt'"):
        from_dict(Prompt, {"id": "p", "source": "s", "promt": []})


def test_missing_keys_are_named() -> None:
    with pytest.raises(DataError, match=r"key 'source' is missing; the row has id, text"):
        from_dict(Document, {"id": "t", "text": "x"})


def test_a_bad_message_is_named_by_its_place() -> None:
    row = {"id": "d", "source": "s", "messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}
    with pytest.raises(DataError, match=r"'messages\[1\]' has no 'content', only role"):
        from_dict(Demonstration, row)


def test_tool_calls_are_not_lost_in_silence() -> None:
    message = {"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}
    with pytest.raises(DataError, match="also has 'tool_calls'"):
        from_dict(Prompt, {"id": "p", "source": "s", "prompt": [message]})


def test_the_same_question_has_the_same_prompt_text_in_every_kind() -> None:
    asked = Message("user", " hi?\n")  # Hi? with other case and white space
    texts = {
        prompt_text(Demonstration("d", "s", (USER, ANSWER))),
        prompt_text(comparison(prompt=(asked,))),
        prompt_text(Prompt("p", "s", (Message("user", "\uff28i?"),))),  # full-width H
    }
    assert len(texts) == 1
    assert prompt_text(Prompt("p", "s", (SYSTEM, USER))) not in texts


def test_whose_turn_it_was_tells_prompts_apart() -> None:
    one = Prompt("p", "s", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    other = Prompt("p", "s", (Message("user", "a b c"),))
    assert prompt_text(one) != prompt_text(other)
