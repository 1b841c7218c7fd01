"""Messages as they are published: parts of text, other names of roles, and what cannot be stored."""

from typing import Any

import pytest

from data_schema import DataError, Message
from data_schema.messages import parse_messages

ASKED = Message("user", "Hi?")


def one(**message: Any) -> tuple[Message, ...]:
    return parse_messages([{"role": "user", "content": "Hi?"} | message], "messages")


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i?", "image": None}]
    assert one(content=parts) == (ASKED,)


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "Hi?",
    {"type": "text", "text": "a", "image": "x"},
])  # fmt: skip
def test_other_parts_are_refused(part: Any) -> None:
    with pytest.raises(DataError, match=r"'messages\[0\].content\[0\]'"):
        one(content=[part])


def test_roles_by_other_names_are_those_they_mean() -> None:
    assert [one(role=role)[0].role for role in ("developer", "User", "model")] == ["system", "user", "assistant"]


def test_a_system_message_without_text_is_left_out() -> None:
    assert parse_messages([{"role": "system", "content": ""}, {"role": "user", "content": "Hi?"}], "messages") == (
        ASKED,
    )


@pytest.mark.parametrize("message", [
    {"role": "tool", "content": "4 C"}, {"role": "function", "content": "4 C", "name": "f"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
    {"role": "assistant", "function_call": {"name": "f"}},
])  # fmt: skip
def test_tool_calls_are_refused_in_one_line(message: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="tool calls are not supported") as caught:
        parse_messages([message], "messages")
    assert "\n" not in str(caught.value)
