"""Alpaca and its relatives: `instruction`, `input`, `output`; also ranked outputs, and `chosen` and `rejected`.

Stanford's data, LIMA and OASST as LLaMA-Factory passes them on (`history` holds the turns before), and others.
Instruction and input become one user message with an empty line between.
"""

import re
from typing import Any

from data_schema.errors import DataError
from data_schema.format_parts import Origin, Outcome, Row, rest, text_of
from data_schema.records import Comparison, Demonstration, Message, Prompt, check_list, check_text, describe

NO_INPUT = re.compile(r"\W*(no ?input|n/?a|none|not applicable)\W*", re.IGNORECASE)


def _alpaca_prompt(row: Row) -> tuple[Message, ...]:
    instruction = text_of(row, "instruction")
    context = row.get("input") or ""
    if not isinstance(context, str):
        raise DataError(f"'input' must be text, found {describe(context)}", field="input")
    turns: list[Message] = []
    for i, pair in enumerate(check_list(row.get("history") or [], "history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"'history[{i}]' must be [question, answer], found {describe(pair)}", field="history")
        turns.append(Message("user", check_text(pair[0], f"history[{i}][0]")))
        turns.append(Message("assistant", check_text(pair[1], f"history[{i}][1]")))
    if context.strip() and not NO_INPUT.fullmatch(context):
        instruction = f"{instruction}\n\n{context}"
    return (*turns, Message("user", instruction))


def _alpaca_meta(row: Row) -> dict[str, Any]:
    # `text` is the filled template, all of it in the other columns.
    return rest(row, "instruction", "input", "output", "text", "history", "chosen", "rejected")


def alpaca_demonstration(row: Row, origin: Origin) -> Outcome:
    answer = Message("assistant", text_of(row, "output"))
    return Demonstration(*origin, messages=(*_alpaca_prompt(row), answer), meta=_alpaca_meta(row))


def alpaca_prompt(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=_alpaca_prompt(row), meta=_alpaca_meta(row))


def alpaca_ranking(row: Row, origin: Origin) -> Outcome:
    """`output` lists the responses from best to worst."""
    outputs = check_list(row["output"], "output")
    responses = tuple(check_text(output, f"output[{i}]") for i, output in enumerate(outputs))
    ranks = tuple(range(1, len(responses) + 1))
    return Comparison(*origin, prompt=_alpaca_prompt(row), responses=responses, ranks=ranks, meta=_alpaca_meta(row))


def alpaca_best(row: Row, origin: Origin) -> Outcome:
    """The best of the ranked outputs, as a demonstration."""
    ranking = alpaca_ranking(row, origin)
    assert isinstance(ranking, Comparison)
    answer = Message("assistant", ranking.responses[0])
    return Demonstration(*origin, messages=(*ranking.prompt, answer), meta=ranking.meta)


def alpaca_preference(row: Row, origin: Origin) -> Outcome:
    """Alpaca's columns with `chosen` and `rejected` texts."""
    responses = (text_of(row, "chosen"), text_of(row, "rejected"))
    return Comparison(*origin, prompt=_alpaca_prompt(row), responses=responses, ranks=(1, 2), meta=_alpaca_meta(row))


def alpaca_chosen(row: Row, origin: Origin) -> Outcome:
    answer = Message("assistant", text_of(row, "chosen"))
    return Demonstration(*origin, messages=(*_alpaca_prompt(row), answer), meta=_alpaca_meta(row))
