"""Several answers in one row, with a rating, a rank or votes for each."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.choices import prompt_beside, used_by_prompt
from data_schema.formats.general.columns import question_columns, turns_column
from data_schema.formats.meaning import filled, is_empty, named, number, plain, shown, word
from data_schema.formats.parts import Row, rest
from data_schema.formats.ranking_parts import Ranking

_LISTS = (
    "generations", "responses", "completions", "outputs", "candidates", "candidates_completions", "answers", "replies",
    "samples", "model_responses", "model_outputs", "all_generated_responses", "solutions",
)  # fmt: skip
_NUMBERS = (
    "ratings", "rating", "scores", "score", "rewards", "reward", "ranks", "rank", "ranking", "votes",
)  # fmt: skip
_TEXTS = ("text", "answer", "response", "content", "completion", "output", "generation", "body", "reply")
_EACH = (
    "score", "rating", "rank", "reward", "pm_score", "overall_score", "votes", "upvotes", "label", "is_correct",
    "selected",
)  # fmt: skip


def _numbered(column: str, values: Sequence[Any]) -> list[float | None]:
    """Scores, higher is better: ranks and orders count from the best, verdicts are 1 and 0."""
    if plain(column) in ("ranks", "rank", "ranking"):
        if plain(column) == "ranking":
            _check_ranking(column, values)
        return [None if (n := number(value)) is None else -n for value in values]
    if all(number(value) is None for value in values):
        said = [word(value) for value in values]
        return [None if s is None else float(s in ("yes", "good")) for s in said]
    return [number(value) for value in values]


def _check_ranking(column: str, values: Sequence[Any]) -> None:
    """Raise DataError if the numbers may as well be the answers' places in order, and then say something else."""
    places = [number(value) for value in values]
    ordered = sorted(place for place in places if place is not None)
    if ordered in ([float(i) for i in range(len(values))], [float(i + 1) for i in range(len(values))]):
        inverse = [places.index(place) for place in ordered]
        if inverse != [ordered.index(place) for place in places]:  # type: ignore[arg-type]  # none is None
            raise DataError(
                f"'{column}' may be a rank for each answer or the answers in order, found {shown(list(values))}; name"
                " the column ranks if it has ranks",
                field=column,
            )


def _listed(row: Row) -> tuple[str, list[str], list[object], list[float | None]] | None:
    """(column of the answers, columns read, answers, scores) of lists of the same length or of a list of objects."""
    for column in filled(row, _LISTS):
        items = row[column]
        if not isinstance(items, list) or len(items) < 2:
            continue
        if all(isinstance(item, dict) for item in items):
            text = next((key for key in _TEXTS if all(key in item for item in items)), None)
            key = next((key for key in _EACH if all(not is_empty(item.get(key)) for item in items)), None)
            if text and key:
                return column, [column], [item[text] for item in items], _numbered(key, [item[key] for item in items])
        elif all(item is None or isinstance(item, str) for item in items):
            for other in filled(row, _NUMBERS):
                values = row[other]
                if isinstance(values, list) and len(values) == len(items):
                    return column, [column, other], items, _numbered(other, values)
    return None


@lru_cache(maxsize=1024)
def list_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    return named(columns, _LISTS)


def is_listed(row: Row) -> bool:
    return (
        bool(list_columns(tuple(row))) and bool(question_columns(row) or turns_column(row)) and _listed(row) is not None
    )


def read_by_list(row: Row) -> tuple[str, ...]:
    found = _listed(row)
    return (*used_by_prompt(row), *(found[1] if found else ()))


def listed(row: Row) -> Ranking:
    """Several answers and a rating, rank or verdict for each."""
    found = _listed(row)
    if found is None:
        raise DataError("the row has no list of answers with a list of as many ratings")
    _, used, answers, scores = found
    prompt = prompt_beside(row)
    if prompt is None:
        raise DataError(f"the row has no question, only {', '.join(row)}", field="prompt")
    return Ranking(prompt, answers, scores, rest(row, *used_by_prompt(row), *used) | {"scores": scores})
