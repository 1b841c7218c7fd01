"""Alpaca and its relatives: `instruction`, `input`, `output`; also ranked outputs, and `chosen` and `rejected`.

Used by Stanford's data, LLaMA-Factory's versions of LIMA and OASST (`history` has the earlier turns), Dolly, GPTeacher
and others. Instruction and input become one user message, separated by an empty line.
"""

from typing import Any

from data_schema.errors import DataError
from data_schema.formats.parts import FILLED_TEXT, Drop, Origin, Outcome, Reader, Row, rest, text_of, with_input
from data_schema.records import Comparison, Demonstration, Message, Prompt, check_list, check_text, describe


def alpaca_turns(row: Row, context_column: str = "input") -> tuple[Message, ...]:
    """The conversation up to the question. Raises DataError for a missing, empty or wrongly typed column."""
    instruction = text_of(row, "instruction")
    context = row.get(context_column) or ""
    if not isinstance(context, str):
        raise DataError(f"'{context_column}' must be text, found {describe(context)}", field=context_column)
    turns: list[Message] = []
    if row.get("system"):
        turns.append(Message("system", text_of(row, "system")))
    for i, pair in enumerate(check_list(row.get("history") or [], "history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"'history[{i}]' must be [question, answer], found {describe(pair)}", field="history")
        turns.append(Message("user", check_text(pair[0], f"history[{i}][0]")))
        turns.append(Message("assistant", check_text(pair[1], f"history[{i}][1]")))
    return (*turns, Message("user", with_input(instruction, context)))


def _alpaca_meta(row: Row, *used: str) -> dict[str, Any]:
    # `text` is the filled template, which only repeats the other columns.
    return rest(row, "instruction", "input", "output", "text", "system", "history", "chosen", "rejected", *used)


def instruction_readers(context: str, answer: str) -> dict[type, Reader]:
    """Readers of rows with `instruction`; `context` and `answer` name the columns of its input and its answer."""

    def demonstration(row: Row, origin: Origin) -> Outcome:
        messages = (*alpaca_turns(row, context), Message("assistant", text_of(row, answer)))
        return Demonstration(*origin, messages=messages, meta=_alpaca_meta(row, context, answer))

    def prompt(row: Row, origin: Origin) -> Outcome:
        return Prompt(*origin, prompt=alpaca_turns(row, context), meta=_alpaca_meta(row, context, answer))

    return {Demonstration: demonstration, Prompt: prompt}


def alpaca_prompt(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=alpaca_turns(row), meta=_alpaca_meta(row))


def alpaca_ranking(row: Row, origin: Origin) -> Outcome:
    """`output` lists the responses from best to worst."""
    outputs = check_list(row["output"], "output")
    responses = tuple(check_text(output, f"output[{i}]") for i, output in enumerate(outputs))
    if len({response.strip() for response in responses}) < len(responses):
        return Drop("equal texts")
    ranks = tuple(range(1, len(responses) + 1))
    return Comparison(*origin, prompt=alpaca_turns(row), responses=responses, ranks=ranks, meta=_alpaca_meta(row))


def alpaca_best(row: Row, origin: Origin) -> Outcome:
    """The best of the ranked outputs, as a demonstration."""
    ranking = alpaca_ranking(row, origin)
    if not isinstance(ranking, Comparison):
        return ranking
    answer = Message("assistant", ranking.responses[0])
    return Demonstration(*origin, messages=(*ranking.prompt, answer), meta=ranking.meta)


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
