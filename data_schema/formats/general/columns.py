"""Which columns of a row hold the question, the answer and the turns before, by the names that data sets use."""

import re
from collections.abc import Iterable
from functools import lru_cache

from data_schema.errors import DataError
from data_schema.formats.general.transcripts import asked_in, spoken_in
from data_schema.formats.general.turns import TURNS, is_turns, parse_turns
from data_schema.formats.meaning import HISTORIES, filled, is_empty, named, names, plain, shown
from data_schema.formats.parts import Row, prompt_of, text_of, unwrapped, with_input
from data_schema.messages import Message, check_list, check_text, describe

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
CONTEXTS = ("input", "context")  # what an instruction is about
# What a question is asked about or chosen from; a question without it cannot be answered.
BESIDE = names(
    "choices options option_a choice_a opa mc1_targets distractors distractor1 passage passages paragraph document"
    " documents article story facts support context contexts evidence table premise hypothesis background schema"
    " answer_options answer_choices incorrect_answers wrong_answers endings"
)
OPTION = re.compile(r"(?:option|choice|opt|op|distractor|ending|incorrect_answer|wrong_answer)_?[a-j0-9]")


@lru_cache(maxsize=1024)
def model_answers(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with the answer of one of several models."""
    return tuple(column for column in columns if MODEL_ANSWER.fullmatch(plain(column)))


# ---- the question


def spoken(text: str, column: str) -> tuple[Message, ...]:
    """A question in one text: the messages of a transcript, else one user message."""
    return asked_in(text) or (Message("user", unwrapped(check_text(text, column))),)


def _may_ask(value: object) -> bool:
    return isinstance(value, str) or is_turns(value) or (isinstance(value, dict) and is_turns(value.get("messages")))


@lru_cache(maxsize=1024)
def only_question(columns: tuple[str, ...]) -> str | None:
    """The one column that may hold the question, if it is clear from the names of the columns."""
    found = named(columns, QUESTIONS)
    return found[0] if len(found) == 1 and set(named(columns, CONTEXTS)) <= set(found) else None


def question_columns(row: Row) -> list[str]:
    """The columns that hold the question: one, or an instruction and its input. Empty if there is none, or if it is
    unclear which it is."""
    if (only := only_question(tuple(row))) is not None:
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
