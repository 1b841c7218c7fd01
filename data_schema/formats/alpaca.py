"""Alpaca and its relatives: `instruction`, `input`, `output`; also ranked outputs, and `chosen` and `rejected`.

Used by Stanford's data, LLaMA-Factory's versions of LIMA and OASST (`history` has the earlier turns), Dolly, GPTeacher
and others. Instruction and input become one user message, separated by an empty line.
"""

import re
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.columns import history_of, spoken
from data_schema.formats.general.transcripts import answer_after
from data_schema.formats.parts import FILLED_TEXT, Drop, Origin, Outcome, Reader, Row, rest, text_of, with_input
from data_schema.formats.ranking_parts import Ranking
from data_schema.records import Comparison, Demonstration, Message, Prompt, check_list, check_text, describe


def alpaca_turns(row: Row, context_column: str = "input") -> tuple[Message, ...]:
    """The conversation up to the question. Raises DataError for a missing, empty or wrongly typed column."""
    instruction = text_of(row, "instruction")
    beside = row.get("context") if context_column == "input" else None
    if isinstance(beside, str) and beside.strip() and beside.strip() not in instruction:
        if row.get("input"):
            raise DataError("'input' and 'context' both have content; put one into the instruction", field="context")
        context_column = "context"
    context = row.get(context_column) or ""
    if not isinstance(context, str):
        raise DataError(f"'{context_column}' must be text, found {describe(context)}", field=context_column)
    turns = history_of(row)
    if not context.strip():
        return (*turns, *spoken(instruction, "instruction"))
    return (*turns, Message("user", with_input(instruction, context)))


ALPACA_OPTIONAL = frozenset({"input", "context", "history", "text"})


SYSTEM_PROMPT = re.compile(r"\s*You are (an?|the) ([\w-]+ ){0,3}assistant\b", re.I)


def dolphin_turns(row: Row) -> tuple[Message, ...]:
    """Alpaca's columns as Dolphin uses them: an instruction that says who the assistant is, is a system prompt."""
    turns = alpaca_turns(row)
    context = row.get("input")
    if not isinstance(context, str) or not context.strip() or not SYSTEM_PROMPT.match(text_of(row, "instruction")):
        return turns
    return (Message("system", row["instruction"]), *turns[:-1], Message("user", context))


def _alpaca_meta(row: Row, *used: str) -> dict[str, Any]:
    # `text` is the filled template, which only repeats the other columns.
    return rest(row, "instruction", "input", "output", "text", "history", "chosen", "rejected", *used)


def instruction_readers(context: str, answer: str) -> dict[type, Reader]:
    """Readers of rows with `instruction`; `context` and `answer` name the columns of its input and its answer."""

    def asked(row: Row) -> tuple[Message, ...]:
        return dolphin_turns(row) if (context, answer) == ("input", "output") else alpaca_turns(row, context)

    def demonstration(row: Row, origin: Origin) -> Outcome:
        said = answer_after(text_of(row, "instruction"), text_of(row, answer))
        messages = (*asked(row), Message("assistant", said))
        return Demonstration(*origin, messages=messages, meta=_alpaca_meta(row, context, answer))

    def prompt(row: Row, origin: Origin) -> Outcome:
        return Prompt(*origin, prompt=asked(row), meta=_alpaca_meta(row, context, answer))

    return {Demonstration: demonstration, Prompt: prompt}


def alpaca_prompt(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=alpaca_turns(row), meta=_alpaca_meta(row))


def alpaca_ranking(row: Row) -> Ranking:
    """`output` lists the responses from best to worst."""
    outputs = check_list(row["output"], "output")
    for i, output in enumerate(outputs):
        check_text(output, f"output[{i}]")
    if len(outputs) < 2:
        raise DataError(f"'output' must have two or more, found {len(outputs)}", field="output")
    return Ranking(alpaca_turns(row), outputs, [-float(i) for i in range(len(outputs))], _alpaca_meta(row))


def alpaca_preference(row: Row, origin: Origin) -> Outcome:
    """Alpaca's columns with `chosen` and `rejected` texts."""
    responses = (text_of(row, "chosen"), text_of(row, "rejected"))
    if responses[0].strip() == responses[1].strip():
        return Drop("equal texts")
    return Comparison(*origin, prompt=alpaca_turns(row), responses=responses, ranks=(1, 2), meta=_alpaca_meta(row))


def alpaca_chosen(row: Row, origin: Origin) -> Outcome:
    answer = Message("assistant", text_of(row, "chosen"))
    return Demonstration(*origin, messages=(*alpaca_turns(row), answer), meta=_alpaca_meta(row))


# ---- rows with only the filled template


def is_alpaca_text(row: Row) -> bool:
    return isinstance(row["text"], str) and FILLED_TEXT.fullmatch(row["text"]) is not None


def _alpaca_text(row: Row) -> tuple[Message, str]:
    filled = FILLED_TEXT.fullmatch(text_of(row, "text"))
    if filled is None:
        raise DataError("'text' is not Stanford's template with an answer; see docs/data_formats.md", field="text")
    return Message("user", with_input(filled["instruction"], filled["input"] or "")), filled["answer"].strip()


def alpaca_text_demonstration(row: Row, origin: Origin) -> Outcome:
    prompt, answer = _alpaca_text(row)
    messages = (prompt, Message("assistant", check_text(answer, "the response in text")))
    return Demonstration(*origin, messages=messages, meta=rest(row, "text"))


def alpaca_text_prompt(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=(_alpaca_text(row)[0],), meta=rest(row, "text"))
