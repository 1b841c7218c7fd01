"""Lists of turns, whatever their keys are called, also where they are written as text."""

import ast
import json
from functools import lru_cache
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.meaning import HISTORIES, is_empty, named, plain
from data_schema.formats.parts import Row
from data_schema.messages import (
    MESSAGE_ROLES,
    TOOL_ROLES,
    Message,
    check_list,
    check_plain_message,
    check_text,
    describe,
    is_learned,
    message_text,
)

TURNS = (
    "messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "trajectory", "contents",
    "context_messages", "context",
)  # fmt: skip

SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "prompter": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "bot": "assistant", "ai": "assistant", "chatbot": "assistant", "llm": "assistant",
}  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")


def is_turns(value: object) -> bool:
    """Whether a value is a list of turns: objects with a speaker and a text, or (Capybara) with input and output."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict):
        return False
    return (_key(first, ROLE_KEYS) is not None and _key(first, TEXT_KEYS) is not None) or {"input", "output"} <= set(
        first
    )


def _key(turn: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if key in turn:
            return key
    return None


def _usual_turn(turn: object) -> Message | None:
    """The message of a turn with a known speaker, a text and nothing else; None for any other turn."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return None
    who, text = (turn.get("role"), turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
    if not isinstance(who, str) or who not in SPEAKERS or not isinstance(text, str) or is_empty(text):
        return None
    try:
        return Message(SPEAKERS[who], text)
    except DataError:
        return None


def parse_turns(value: object, name: str) -> tuple[Message, ...]:
    """Messages from a list of turns, whatever the keys for speaker and text are called. Raises DataError naming field
    `name` and the position."""
    messages: list[Message] = []
    for i, turn in enumerate(check_list(value, name)):
        if (message := _usual_turn(turn)) is not None:
            messages.append(message)
            continue
        place = f"{name}[{i}]"
        if not isinstance(turn, dict):
            raise DataError(f"'{place}' must be an object, found {describe(turn)}", field=name)
        if "input" in turn and "output" in turn:
            check_plain_message(turn, place, ("input", "output", "system"))
            if not is_empty(turn.get("system")):  # XTuner
                messages.append(Message("system", check_text(turn["system"], f"{place}.system")))
            messages.append(Message("user", check_text(turn["input"], f"{place}.input")))
            learned = is_learned(turn, place)
            messages.append(Message("assistant", check_text(turn["output"], f"{place}.output"), learned))
            continue
        who, said = _key(turn, ROLE_KEYS), _key(turn, TEXT_KEYS)
        if who is None or said is None:
            raise DataError(f"'{place}' must have 'from' and 'value', found {describe(turn)}", field=name)
        speaker = turn[who].strip().lower() if isinstance(turn[who], str) else turn[who]
        if speaker in TOOL_ROLES:
            raise DataError(
                f"'{place}' is spoken by {speaker}; tool calls are not supported, remove the row", field=name
            )
        role = MESSAGE_ROLES.get(speaker, SPEAKERS.get(speaker)) if isinstance(speaker, str) else None
        if role is None:
            known = ", ".join(SPEAKERS)
            raise DataError(f"'{place}.{who}' must be one of {known}, found {describe(turn[who])}", field=name)
        if len(turn) > 2:
            check_plain_message(turn, place, (who, said))
        text = message_text(turn[said], f"{place}.{said}")
        if role == "system" and is_empty(text):
            continue  # no system prompt
        learned = role != "assistant" or len(turn) == 2 or is_learned(turn, place)
        messages.append(Message(role, check_text(text, f"{place}.{said}"), learned))
    return tuple(messages)


# ---- lists as text, as in CSV

LISTS = (*TURNS, *HISTORIES, "prompt", "chosen", "rejected", "completion", "input", "conversation_a", "conversation_b")


@lru_cache(maxsize=1024)
def _list_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    return named(columns, LISTS)


def unpacked(row: Row) -> Row:
    """The row with lists of turns that are written as text (JSON, or Python's form) as lists. Raises DataError if such
    a text cannot be read."""
    found: dict[str, Any] = {}
    for column in _list_columns(tuple(row)):
        value = row[column]
        if isinstance(value, dict) and (turns := _from_columns(value)):
            found[column] = turns
        if isinstance(value, str) and value[:1] in "[{ \t\r\n" and value[:20].lstrip()[:1] in ("[", "{"):
            read = _read_list(value)
            if is_turns(read) or (isinstance(read, dict) and is_turns([read])):
                found[column] = read
            elif read is None and _looks_like_turns(value):
                raise DataError(f"'{column}' holds a list of messages as text that cannot be read", field=column)
            elif (
                isinstance(read, list) and plain(column) in TURNS and all(isinstance(item, str) for item in read)
            ) or (isinstance(read, list) and plain(column) in HISTORIES):
                found[column] = read
    return {**row, **found} if found else row


def _from_columns(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The turns of an object that has a list for each of their keys, as `datasets` returns a sequence of objects."""
    lists = list(value.values())
    if not lists or not all(isinstance(items, list) and len(items) == len(lists[0]) for items in lists):
        return None
    turns = [dict(zip(value, items, strict=True)) for items in zip(*lists, strict=True)]
    return turns if is_turns(turns) else None


def _looks_like_turns(text: str) -> bool:
    start = "".join(text[:40].split())
    return start.startswith(("[{'", '[{"')) and any(
        f"{start[2]}{key}{start[2]}:" in start for key in ROLE_KEYS + TEXT_KEYS
    )


def _read_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
