"""Single answers that are marked as good or bad (KTO), or rated, under any of the usual names.

Marked and rated answers to one prompt become a comparison. A bad answer is never a demonstration, and a rated one is
none at all, since nobody can say from which rating on an answer is good.
"""

from functools import lru_cache
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.single import Single, asked_of, find_single, meta_of, place_of, question_and_answer
from data_schema.formats.meaning import is_empty, meanings, plain, ratings, shown, verdict_of, verdicts
from data_schema.formats.parts import Drop, Gather, Origin, Outcome, Reader, Row
from data_schema.formats.ranking_parts import Ranking, gather_by, gathered, readers, why_unusable
from data_schema.records import Comparison, Demonstration, Message, Prompt

# ---- answers marked good or bad (KTO)


def is_marked(row: Row) -> bool:
    """One answer, and a verdict on it."""
    if not judging_columns(tuple(row)):
        return False
    place = find_single(row)
    return place is not None and bool(verdicts(row, place.columns))


@lru_cache(maxsize=1024)
def judging_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that may judge an answer, by their names."""
    return tuple(c for c in columns if meanings(c) & {"verdict", "fault", "mark", "rating"})


def _mark_columns(columns: tuple[str, ...], used: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(c for c in judging_columns(columns) if c not in used)


def marked_parts(row: Row) -> tuple[tuple[Message, ...], object, bool]:
    """(prompt, answer, whether it is good). Raises DataError for a verdict that is missing, unclear or contradicted."""
    place = place_of(row)
    found = verdicts(row, place.columns)
    if not found:
        column = next((c for c in _mark_columns(tuple(row), place.columns) if row[c] is not None), "label")
        raise DataError(f"'{column}' must be true or false, found {shown(row.get(column))}", field=column)
    unclear = [
        column
        for column in _mark_columns(tuple(row), place.columns)
        if meanings(column) & {"verdict", "fault"}
        and not isinstance(row[column], dict | list)
        and not is_empty(row[column])
        and verdict_of(column, row[column]) is None
    ]
    if unclear:
        raise DataError(f"'{unclear[0]}' must be true or false, found {shown(row[unclear[0]])}", field=unclear[0])
    if len(set(found.values())) > 1:
        told = ", ".join(f"{column}: {'good' if good else 'bad'}" for column, good in found.items())
        raise DataError(
            f"the verdicts on the answer differ, found {told}; remove the columns that do not count",
            field=next(iter(found)),
        )
    return *question_and_answer(row, place), next(iter(found.values()))


def _marked_meta(row: Row) -> dict[str, Any]:
    place = place_of(row)
    return meta_of(row, place, *verdicts(row, place.columns))


def marked(row: Row) -> Ranking | list[Drop]:
    """A prompt's good answers, ranked above its bad ones. A prompt with only one kind gives no comparison."""
    parts = [marked_parts(judged) for judged in gathered(row)]
    if len({good for *_, good in parts}) == 1:
        return [Drop("unpaired answer")] * len(parts)
    scores = [1.0 if good else 0.0 for *_, good in parts]
    return Ranking(parts[0][0], [answer for _, answer, _ in parts], scores, _marked_meta(row))


def marked_good(row: Row, origin: Origin) -> Outcome:
    """The good answers as demonstrations."""
    outcome: list[Demonstration | Drop] = []
    for number, judged in enumerate(gathered(row), start=1):
        prompt, answer, good = marked_parts(judged)
        at = Origin(origin.id if number == 1 else f"{origin.id}.{number}", origin.source)
        if reason := why_unusable(answer) if good else "answer marked bad":
            outcome.append(Drop(reason))
        else:
            messages = (*prompt, Message("assistant", str(answer)))
            outcome.append(Demonstration(*at, messages=messages, meta=_marked_meta(judged)))
    return outcome


def _marked_prompt(row: Row) -> Ranking:
    return Ranking(asked_of(row, place_of(row)), [], [], _marked_meta(row))


MARKED_READERS: dict[type, Reader] = {
    Comparison: readers(marked)[Comparison],
    Demonstration: marked_good,
    Prompt: readers(_marked_prompt)[Prompt],
}
gather_marked: Gather = gather_by(lambda row: marked_parts(row)[0])

# ---- rated answers


def is_rated(row: Row) -> bool:
    if not judging_columns(tuple(row)):
        return False
    place = find_single(row)
    return place is not None and bool(ratings(row, place.columns)) and not verdicts(row, place.columns)


def _rating(row: Row, place: Single) -> float:
    found = ratings(row, place.columns)
    if not found:
        raise DataError("the answer has no rating that is a number", field="rating")
    worst = {column: -value if plain(column) == "rank" else value for column, value in found.items()}
    if len(worst) > 1:
        raise DataError(
            f"the answer has several ratings, found {', '.join(worst)}; remove those that do not count", field="rating"
        )
    return next(iter(worst.values()))


def rated(row: Row) -> Ranking:
    """The answers to one prompt, ranked by their rating."""
    rows = gathered(row)
    places = [place_of(each) for each in rows]
    parts = [question_and_answer(each, place) for each, place in zip(rows, places, strict=True)]
    scores = [_rating(each, place) for each, place in zip(rows, places, strict=True)]
    meta = meta_of(row, places[0], *ratings(row, places[0].columns)) | {"scores": scores}
    return Ranking(parts[0][0], [answer for _, answer in parts], scores, meta)


def rated_demonstration(row: Row, origin: Origin) -> Outcome:
    place = place_of(row)
    column = next(iter(ratings(row, place.columns)), "rating")
    raise DataError(
        f"'{column}' rates the answer, so it may be a bad one; filter by it and remove the column, or name the format"
        " (such as pair) to use all rows",
        field=column,
    )


def _rated_key(row: Row) -> tuple[Message, ...]:
    place = place_of(row)
    _rating(row, place)
    return question_and_answer(row, place)[0]


def _rated_prompt(row: Row) -> Ranking:
    place = place_of(row)
    return Ranking(asked_of(row, place), [], [], meta_of(row, place))


RATED_READERS: dict[type, Reader] = {
    Comparison: readers(rated)[Comparison],
    Demonstration: rated_demonstration,
    Prompt: readers(_rated_prompt)[Prompt],
}
gather_rated: Gather = gather_by(_rated_key)
