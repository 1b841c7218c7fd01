"""Lists of turns become messages, whatever their keys are called and however they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_schema import DataError, Message
from data_schema.formats.general.turns import parse_turns, unpacked

ASKED, SAID = Message("user", "Name a river."), Message("assistant", "The Po.")
CHAT = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Po."}]

TURNS: dict[str, list[dict[str, Any]]] = {
    "role and content": CHAT,
    "from and value": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Po."}],
    "role and text": [{"role": "user", "text": "Name a river."}, {"role": "bot", "text": "The Po."}],
    "capitals": [{"speaker": "USER", "text": "Name a river."}, {"speaker": "Bot", "text": "The Po."}],
    "parts": [
        {"role": "user", "parts": [{"text": "Name a river."}]},
        {"role": "model", "parts": [{"text": "The "}, {"text": "Po."}]},
    ],
    "input and output": [{"input": "Name a river.", "output": "The Po."}],
}


@pytest.mark.parametrize("case", TURNS)
def test_turns_become_messages_whatever_their_keys_are_called(case: str) -> None:
    assert parse_turns(TURNS[case], "turns") == (ASKED, SAID)


def test_a_system_prompt_in_the_first_turn_becomes_the_system_message() -> None:
    turns = [{"system": "Be brief.", "input": "Name a river.", "output": "The Po."}]
    assert parse_turns(turns, "conversation") == (Message("system", "Be brief."), ASKED, SAID)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "user", "content": " "}, r"'turns\[0\].content' is empty"),
        ({"role": "judge", "content": "Good."}, r"'turns\[0\].role' must be one of"),
        ({"role": "tool", "content": "4"}, "tool calls are not supported"),
        ({"role": "user", "content": "\ud800"}, "half a surrogate pair"),
        ({"role": "user", "content": 5}, r"'turns\[0\].content' must be text"),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_turns([turn], "turns")


def test_lists_of_turns_are_read_from_text_and_from_an_object_of_lists() -> None:
    lists = {"role": ["user", "assistant"], "content": ["Name a river.", "The Po."]}
    for written in (json.dumps(CHAT), str(CHAT), lists):
        assert unpacked({"messages": written}) == {"messages": CHAT}


def test_an_object_of_lists_that_are_no_turns_stays_as_it_is() -> None:
    for value in ({"text": ["a"], "label": ["b"]}, {"role": ["user"], "content": []}, {}):
        assert unpacked({"messages": value}) == {"messages": value}
