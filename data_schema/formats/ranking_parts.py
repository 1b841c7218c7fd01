"""Shared by the readers of comparison data: turn a row's prompt, answers and scores into any kind of record.

A reader of comparison data returns a row's `Ranking`, a `Drop`, or a list of these. `readers` makes comparisons,
demonstrations (the best answer) and prompts from them, and drops rows by the same rules for every format.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from data_schema.errors import DataError
from data_schema.formats.meaning import is_empty, meanings
from data_schema.formats.parts import Drop, Gather, NumberedRows, Origin, Outcome, Reader, Row
from data_schema.messages import message_text
from data_schema.records import Comparison, Demonstration, Message, Prompt, Record, check_text, describe

T = TypeVar("T")


class Ranking(NamedTuple):
    """One prompt, its answers as the row has them, and how good each was found."""

    prompt: tuple[Message, ...]
    answers: Sequence[object]  # texts; other values are dropped and counted
    scores: Sequence[float | None]  # one per answer, higher is better; None: not judged
    meta: dict[str, Any]
    group: str | None = None
    labeler: str | None = None
    margin: float | None = None
    unclear: str | None = None  # why the better answer is unknown; scores are then ignored
    none_good: str | None = None  # why even the best answer must not be imitated


Read = Callable[[Row], Ranking | Drop | Sequence[Ranking | Drop]]

FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)  # scores of two answers


# ---- values of a row


def value_of(row: Row, column: str) -> Any:
    if column not in row:
        raise DataError(f"'{column}' is missing; the row has {', '.join(row) or 'no columns'}", field=column)
    return row[column]


def number_of(row: Row, column: str) -> float:
    value = value_of(row, column)
    if isinstance(value, str):  # CSV has numbers only as text
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"'{column}' must be a finite number, found {describe(value)}", field=column)
    return float(value)


def one_of(row: Row, column: str, meanings: Mapping[Any, T]) -> T:
    """The meaning of the value of `column`. Raises DataError, listing the allowed values, for any other value."""
    value = value_of(row, column)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    # In Python, True equals 1, and a list cannot be a key.
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value not in meanings:
        allowed = ", ".join(str(key) for key in meanings)
        raise DataError(f"'{column}' must be one of {allowed}, found {describe(row[column])}", field=column)
    return meanings[value]


def object_of(row: Row, column: str) -> Row:
    value = value_of(row, column)
    if not isinstance(value, dict):
        raise DataError(f"'{column}' must be an object, found {describe(value)}", field=column)
    return value


def objects_of(row: Row, column: str) -> list[Row]:
    value = value_of(row, column)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"'{column}' must be a list of objects, found {describe(value)}", field=column)
    return value


def system_of(row: Row) -> str | None:
    """The system prompt that a column of its own holds. Raises DataError for one that is no text, and for two."""
    found = {column: row[column] for column in system_columns(tuple(row)) if not is_empty(row[column])}
    for column, value in found.items():
        if isinstance(value, dict) and isinstance(value.get("parts"), list):  # Gemini
            found[column] = message_text(value["parts"], f"{column}.parts")
        check_text(found[column], column)
    columns = list(found)
    if len({text.strip() for text in found.values()}) > 1:
        raise DataError(
            f"two columns hold a system prompt, {columns[0]} and {columns[1]}; remove one", field=columns[1]
        )
    return found[columns[0]] if found else None


@lru_cache(maxsize=1024)
def system_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column for column in columns if "system" in meanings(column))


def group_of(value: object) -> str | None:
    """An id of a post, tree or question as a group; None if it is missing or empty."""
    return None if value is None or str(value).strip() == "" else str(value)


# ---- rankings to records


def why_unusable(answer: object) -> str | None:
    """Why an answer cannot be a response, or None. Published data contain empty answers and JSON's true."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return "empty response"
    return None if isinstance(answer, str) else "response is not text"


def _ranked(ranking: Ranking) -> tuple[list[tuple[str, float]], list[Drop]]:
    """Two or more answers with different scores and texts (or none at all), and the drops.

    Of equal texts with the same score the first is kept; with different scores all are dropped."""
    judged: list[tuple[str, float]] = []
    left_out: list[Drop] = []
    for answer, score in zip(ranking.answers, ranking.scores, strict=True):
        reason = why_unusable(answer) or ("response without a rank" if score is None else None)
        if reason is not None:
            left_out.append(Drop(reason))
        elif isinstance(answer, str) and score is not None:
            judged.append((answer, score))
    if _is_tie(judged):
        return [], [*left_out, Drop("tie")]
    scores: dict[str, set[float]] = {}
    for answer, score in judged:
        scores.setdefault(answer.strip(), set()).add(score)
    distinct: dict[str, tuple[str, float]] = {}
    for answer, score in judged:
        if len(scores[answer.strip()]) > 1:
            left_out.append(Drop("equal texts"))
        elif answer.strip() in distinct:
            left_out.append(Drop("repeated response"))
        else:
            distinct[answer.strip()] = answer, score
    ranked = list(distinct.values())
    if _is_tie(ranked):
        return [], [*left_out, Drop("tie")]
    if len(ranked) < 2:
        return [], left_out or [Drop("fewer than two responses")]
    return ranked, left_out


def _is_tie(judged: Sequence[tuple[str, float]]) -> bool:
    return len(judged) > 1 and len({score for _, score in judged}) == 1


def _comparison(ranking: Ranking, origin: Origin) -> list[Record | Drop]:
    if ranking.unclear:
        return [Drop(ranking.unclear)]
    kept, left_out = _ranked(ranking)
    if not kept:  # a row of two answers counts as one drop, even if both are unusable
        return [*(left_out[:1] if len(ranking.answers) == 2 else left_out)]
    order = sorted({score for _, score in kept}, reverse=True)
    record = Comparison(
        *origin,
        prompt=ranking.prompt,
        responses=tuple(answer for answer, _ in kept),
        ranks=tuple(order.index(score) + 1 for _, score in kept),
        labeler=ranking.labeler,
        margin=ranking.margin,
        group=ranking.group,
        meta=ranking.meta,
    )
    return [record, *left_out]


def _demonstration(ranking: Ranking, origin: Origin) -> list[Record | Drop]:
    """The best answer, the first one if several are equal; a single answer needs no score."""
    if ranking.unclear:
        return [Drop(ranking.unclear)]
    if ranking.none_good:
        return [Drop(ranking.none_good)]
    scores = [score for score in ranking.scores if score is not None]
    if len(scores) > 1 and len(set(scores)) == 1:
        return [Drop("tie")]
    if not scores and len(ranking.answers) != 1:
        return [Drop("response without a rank")]
    best = max(scores, default=None)
    answers = [answer for answer, score in zip(ranking.answers, ranking.scores, strict=True) if score == best]
    texts = [answer for answer in answers if isinstance(answer, str) and why_unusable(answer) is None]
    if not texts:
        return [Drop(why_unusable(answers[0]) or "empty response")]
    messages = (*ranking.prompt, Message("assistant", texts[0]))
    return [Demonstration(*origin, messages=messages, group=ranking.group, meta=ranking.meta)]


def _prompt(ranking: Ranking, origin: Origin) -> list[Record | Drop]:
    return [Prompt(*origin, prompt=ranking.prompt, group=ranking.group, meta=ranking.meta)]


def _reader(read: Read, make: Callable[[Ranking, Origin], list[Record | Drop]]) -> Reader:
    def reader(row: Row, origin: Origin) -> Outcome:
        found = read(row)
        if isinstance(found, Drop):
            return found
        if isinstance(found, Ranking):
            outcome = make(found, origin)
        else:
            outcome = []
            for number, part in enumerate(found, start=1):
                place = Origin(f"{origin.id}.{number}", origin.source)
                outcome += [part] if isinstance(part, Drop) else make(part, place)
        return outcome[0] if len(outcome) == 1 else outcome

    return reader


def readers(read: Read) -> dict[type, Reader]:
    """A reader for each kind of record, using the rankings that `read` finds in a row."""
    makers = {Comparison: _comparison, Demonstration: _demonstration, Prompt: _prompt}
    return {kind: _reader(read, make) for kind, make in makers.items()}


# ---- rows that belong together

GATHERED = "gathered rows"


def gather_by(key: Callable[[Row], Hashable]) -> Gather:
    """Merge rows with the same key into the first of them, with all of them in the column GATHERED.

    `key` raises DataError for a row that no reader could use. Such a row stays separate, so that its error names its
    own place. All rows are kept in memory, since rows of one prompt need not be adjacent."""

    def gather(rows: NumberedRows) -> NumberedRows:
        together: dict[Hashable, tuple[int, list[Row]]] = {}
        alone: list[tuple[int, Row | DataError]] = []
        for number, row in rows:
            if isinstance(row, DataError):
                alone.append((number, row))
                continue
            try:
                name = system_of(row), key(row)
            except DataError:
                alone.append((number, row))
                continue
            together.setdefault(name, (number, []))[1].append(row)
        merged = [(number, {**same[0], GATHERED: same}) for number, same in together.values()]
        yield from sorted([*alone, *merged], key=lambda item: item[0])

    return gather


def gathered(row: Row) -> list[Row]:
    rows: list[Row] = row.get(GATHERED, [row])
    return rows
