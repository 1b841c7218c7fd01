"""Which columns of a row hold the question, the answer and the turns before, by the names that data sets use."""

import ast
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.transcripts import asked_in, spoken_in
from data_schema.formats.meaning import HISTORIES, is_empty, names, plain, shown
from data_schema.formats.parts import Row, prompt_of, text_of, unwrapped, with_input
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

QUESTIONS = (
    "prompt", "instruction", "question", "query", "problem", "user_input", "user_prompt", "user_message", "user_query",
    "user", "human", "request", "question_text", "prompt_text", "input_text", "input", "inputs", "orig_instruction",
    "orig_question",
)  # fmt: skip
ANSWERS = (
    "completion", "response", "output", "solution", "answer", "target", "targets", "assistant", "assistant_response",
    "assistant_output", "model_response", "model_output", "model_answer", "bot_response", "bot", "reply", "generation",
    "generated_text", "generated_answer", "generated_solution", "expected_output", "output_text", "answer_text",
    "response_text", "target_text", "gpt", "chatgpt", "gpt4_response", "gpt_response", "llm_response", "outputs",
    "demonstration", "ideal", "assistant_message", "assistant_reply", "bot_message", "bot_reply", "ai_response",
)  # fmt: skip
# An answer of one of several models, such as "claude_answer".
MODEL_ANSWER = re.compile(
    r"(?:chatgpt|gpt|claude|llama|gemini|gemma|mistral|mixtral|vicuna|alpaca|deepseek|qwen|chatglm|bard|palm|phi|falcon)\w*?"
    r"_(?:response|answer|output|completion|generation)"
)
TURNS = (
    "messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "trajectory", "contents",
    "context_messages", "context",
)  # fmt: skip
CONTEXTS = ("input", "context")  # what an instruction is about
# What a question is asked about or chosen from; a question without it cannot be answered.
BESIDE = names(
    "choices options option_a choice_a opa mc1_targets distractors distractor1 passage passages paragraph document"
    " documents article story facts support context contexts evidence table premise hypothesis background schema"
    " answer_options answer_choices incorrect_answers wrong_answers endings"
)
OPTION = re.compile(r"(?:option|choice|opt|op|distractor|ending|incorrect_answer|wrong_answer)_?[a-j0-9]")

SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "prompter": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "bot": "assistant", "ai": "assistant", "chatbot": "assistant", "llm": "assistant",
}  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")


@lru_cache(maxsize=1024)
def named(columns: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with one of the names, in the order of the names."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(plain(column), []).append(column)
    return tuple(column for name in wanted for column in by_name.get(name, ()))


@lru_cache(maxsize=1024)
def model_answers(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with the answer of one of several models."""
    return tuple(column for column in columns if MODEL_ANSWER.fullmatch(plain(column)))


def filled(row: Row, wanted: tuple[str, ...]) -> list[str]:
    """The row's columns with one of the names that have content."""
    return [column for column in named(tuple(row), wanted) if not is_empty(row[column])]


# ---- lists of turns


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
            elif isinstance(read, list) and plain(column) in TURNS and all(isinstance(item, str) for item in read):
                found[column] = read
            elif isinstance(read, list) and plain(column) in HISTORIES:
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


# ---- the question


def spoken(text: str, column: str) -> tuple[Message, ...]:
    """A question in one text: the messages of a transcript, else one user message."""
    return asked_in(text) or (Message("user", unwrapped(check_text(text, column))),)


def _may_ask(value: object) -> bool:
    return isinstance(value, str) or is_turns(value) or (isinstance(value, dict) and is_turns(value.get("messages")))


@lru_cache(maxsize=1024)
def _only_question(columns: tuple[str, ...]) -> str | None:
    """The one column that may hold the question, if it is clear from the names of the columns."""
    found = named(columns, QUESTIONS)
    return found[0] if len(found) == 1 and set(named(columns, CONTEXTS)) <= set(found) else None


def question_columns(row: Row) -> list[str]:
    """The columns that hold the question: one, or an instruction and its input. Empty if there is none, or if it is
    unclear which it is."""
    if (only := _only_question(tuple(row))) is not None:
        return [only] if _may_ask(row[only]) and not is_empty(row[only]) else []
    found = [column for column in filled(row, QUESTIONS) if _may_ask(row[column])]
    called = [plain(column) for column in found]
    if "instruction" in called:
        first = found[called.index("instruction")]
        context = [column for column in filled(row, CONTEXTS) if isinstance(row[column], str)]
        others = [c for c in found if c != first and c not in context and row[c] != row[first]]
        return [] if others or len(context) > 1 else [first, *context]
    if "prompt" in called and "input" not in called:
        return [found[called.index("prompt")]]
    distinct = [column for i, column in enumerate(found) if all(row[column] != row[other] for other in found[:i])]
    if len(distinct) > 1:  # the question as it was before it was rewritten
        distinct = [column for column in distinct if not plain(column).startswith("orig_")]
    if not found and isinstance(row.get(answer := next(iter(filled(row, ("response", "reply"))), "")), str):
        distinct = [column for column in filled(row, ("context",)) if isinstance(row[column], str) and answer]
    return distinct if len(distinct) == 1 else []


@lru_cache(maxsize=1024)
def turn_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that may hold a list of turns."""
    return named(columns, TURNS)


def turns_column(row: Row) -> str | None:
    """The first column with a list of turns."""
    return next((column for column in turn_columns(tuple(row)) if is_turns(row[column])), None)


@lru_cache(maxsize=1024)
def histories(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that may hold earlier turns."""
    return named(columns, HISTORIES)


def history_of(row: Row) -> tuple[Message, ...]:
    """The turns before the question: [[question, answer], ..], or messages."""
    column = next((column for column in histories(tuple(row)) if not is_empty(row[column])), None)
    if column is None:
        return ()
    if is_turns(row[column]):
        return parse_turns(row[column], column)
    turns: list[Message] = []
    pairs = check_list(row[column], column)
    if len(pairs) % 2 == 0 and all(isinstance(text, str) for text in pairs):
        pairs = [list(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"'{column}[{i}]' must be [question, answer], found {describe(pair)}", field=column)
        turns.append(Message("user", check_text(pair[0], f"{column}[{i}][0]")))
        turns.append(Message("assistant", check_text(pair[1], f"{column}[{i}][1]")))
    return tuple(turns)


def question_of(row: Row, columns: list[str]) -> tuple[Message, ...]:
    """The messages of the question in `columns` (`question_columns`), earlier turns first."""
    first = columns[0]
    value = row[first]
    if isinstance(value, dict) and is_turns(value.get("messages")):  # OpenAI's preference data
        if extra := next((k for k, v in value.items() if k == "tools" and not is_empty(v)), None):
            raise DataError(f"'{first}.{extra}' has content that the model would not see", field=first)
        return parse_turns(value["messages"], f"{first}.messages")
    if isinstance(value, list):
        return parse_turns(value, first)
    if len(columns) > 1:
        return (*history_of(row), Message("user", with_input(text_of(row, first), text_of(row, columns[1]))))
    if first == "prompt" and not history_of(row):
        return prompt_of(row)
    return (*history_of(row), *spoken(text_of(row, first), first))


@lru_cache(maxsize=1024)
def _beside(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that a question may be asked about or chosen from."""
    letters = [column for column in columns if plain(column) in ("a", "b", "c", "d", "e")]
    named_so = [column for column in columns if plain(column) in BESIDE or OPTION.fullmatch(plain(column))]
    return (*named_so, *(letters if len(letters) > 1 else ()))


def check_beside(row: Row, columns: Iterable[str]) -> None:
    """Raise DataError if a question leaves out what it is asked about, such as a passage or choices."""
    if any(plain(column) == "prompt" for column in columns):
        return  # a prompt is whole
    used, beside = set(columns), _beside(tuple(row))
    for column, value in row.items():
        if column not in used and column in beside and not is_empty(value):
            raise DataError(
                f"'{column}' belongs to the question, but the format does not read it ({shown(value)}); put it into the"
                " prompt",
                field=column,
                reason=f"'{column}' belongs to the question, but the format does not read it",
            )


def whole_conversation(text: str, column: str) -> tuple[Message, ...]:
    """The messages of a text that is a transcript. Raises DataError for ordinary text."""
    messages = spoken_in(text)
    if messages is None:
        raise DataError(f"'{column}' must be a transcript or a list of messages, found {describe(text)}", field=column)
    return messages
