"""Two answers in one row and a verdict between them, whatever the columns are called: arenas, judges' benchmarks,
safety data."""

import json
from collections.abc import Callable
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.columns import check_beside, question_columns, question_of, turns_column
from data_schema.formats.general.transcripts import answer_after
from data_schema.formats.general.turns import is_turns, parse_turns
from data_schema.formats.general.verdicts import Duel, find_duel, judged, judging_columns, safety, verdict
from data_schema.formats.meaning import filled, number
from data_schema.formats.parts import Drop, Row, rest
from data_schema.formats.ranking_parts import FIRST, SECOND, Ranking, group_of
from data_schema.records import Message

# ---- the row


def is_duel(row: Row) -> bool:
    duel = find_duel(tuple(row))
    if duel is None or not judged(row, duel):
        return False
    talks = all(isinstance(row[column], list) for column in duel.answers)
    return talks or bool(_asking(row)) or turns_column(row) is not None


def read_by_duel(row: Row) -> tuple[str, ...]:
    found = find_duel(tuple(row))
    if found is None:
        return ()
    judging = judging_columns(row, found)
    return (*found.answers, *_asking(row), *filled(row, ("messages", "conversation", "context")), *judging)


def _asking(row: Row) -> list[str]:
    columns = question_columns(row)
    return filled(row, ("orig_instruction",)) or columns


def _texts(value: object) -> list[Any] | None:
    """The turns of one side as an arena writes them: a list of texts, perhaps as JSON; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    listed = isinstance(value, list) and bool(value) and all(text is None or isinstance(text, str) for text in value)
    return value if listed else None  # type: ignore[return-value]  # listed


def _conversations(row: Row, duel: Duel) -> tuple[tuple[Message, ...], list[object]] | Drop | None:
    """(prompt, answers) if both answers are whole conversations; None if they are not."""
    if all(isinstance(row[column], list) and (not row[column] or is_turns(row[column])) for column in duel.answers):
        talks = [parse_turns(row[column], column) for column in duel.answers]
        for talk, column in zip(talks, duel.answers, strict=True):
            if not talk or talk[-1].role != "assistant":
                raise DataError(f"'{column}' must end with the assistant", field=column)
        if all(len(talk) == 1 for talk in talks):
            return None
        if talks[0][:-1] != talks[1][:-1]:
            return Drop("prompts differ")
        return talks[0][:-1], [talk[-1].content for talk in talks]
    questions = _asking(row)
    asked = _texts(row[questions[0]]) if len(questions) == 1 else None
    answers = [_texts(row[column]) for column in duel.answers]
    if asked is None or answers[0] is None or answers[1] is None:
        return None
    if not len(asked) == len(answers[0]) == len(answers[1]):
        raise DataError("question and answers have different numbers of turns", field=questions[0])
    if answers[0][:-1] != answers[1][:-1]:
        return Drop("prompts differ")
    turns: list[Message] = []
    for question, answer in zip(asked, [*answers[0][:-1], None], strict=True):
        turns.append(Message("user", question))
        if len(turns) < 2 * len(asked) - 1:
            turns.append(Message("assistant", answer))
    return tuple(turns), [side[-1] for side in answers if side]


def duel(row: Row) -> Ranking | Drop:
    """Two answers to one prompt. Conversations that differ before their last answer compare nothing."""
    found = find_duel(tuple(row))
    if found is None:
        raise DataError("the row has not exactly two answers, such as response_a and response_b")
    whole = _conversations(row, found)
    if isinstance(whole, Drop):
        return whole
    used = [*found.answers]
    if whole is None:
        questions = _asking(row)
        columns = [*questions]
        if not questions:
            if (talk := turns_column(row)) is None:
                raise DataError(f"the row has no question, only {', '.join(row)}", field="prompt")
            columns = [talk]
        check_beside(row, columns)
        prompt = question_of(row, questions) if questions else parse_turns(row[columns[0]], columns[0])
        used += columns
        answers = [_answer(row, column, questions) for column in found.answers]
    else:
        prompt, answers = whole
        used += _asking(row)
    scores, unclear = verdict(row, found)
    safe = safety(row, found)
    margin = next((m for c in filled(row, ("margin", "magnitude")) if (m := number(row[c])) is not None), None)
    group = group_of(next((row[c] for c in filled(row, ("question_id", "prompt_id"))), None))
    best_is_bad = scores in (FIRST, SECOND) and safe is not None and safe[0 if scores == FIRST else 1] == 0.0
    return Ranking(
        prompt,
        answers,
        scores,
        rest(row, *used, "history", "margin"),
        margin=margin,
        unclear=unclear,
        group=group,
        none_good="the better answer is marked bad" if best_is_bad else None,
    )


def without(column: str) -> Callable[[Row], Ranking | Drop]:
    """A reader of rows with two verdicts that passes over one of them."""
    return lambda row: duel({name: value for name, value in row.items() if name != column})


def _answer(row: Row, column: str, questions: list[str]) -> object:
    value = row[column]
    if is_turns(value):
        return parse_turns(value, column)[-1].content
    if isinstance(value, dict) and is_turns([value]):
        return parse_turns([value], column)[-1].content
    asked = row[questions[0]] if questions else None
    return answer_after(asked, value) if isinstance(asked, str) and isinstance(value, str) else value
