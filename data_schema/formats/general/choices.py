"""A chosen and a rejected answer under any of the usual names, with their ratings."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.columns import only_question, question_columns, question_of, turns_column
from data_schema.formats.general.transcripts import answer_after, spoken_in
from data_schema.formats.general.turns import TEXT_KEYS, parse_turns
from data_schema.formats.meaning import filled, is_empty, meanings, named, number, plain
from data_schema.formats.parts import Drop, Row, rest
from data_schema.formats.ranking_parts import Ranking, why_unusable
from data_schema.records import Message, describe

_OPPOSITES = (
    ("chosen", "rejected"), ("preferred", "non_preferred"), ("preferred", "dispreferred"), ("preferred", "rejected"),
    ("preferred", "unpreferred"), ("accepted", "rejected"), ("better", "worse"), ("good", "bad"),
    ("winning", "losing"), ("winner", "loser"), ("positive", "negative"), ("best", "worst"), ("selected", "rejected"),
    ("win", "lose"), ("w", "l"), ("safe", "unsafe"), ("pos", "neg"), ("correct", "incorrect"), ("correct", "wrong"),
)  # fmt: skip
_ANSWERS = (
    "response", "answer", "output", "completion", "reply", "generation", "text", "message", "messages", "summary",
    "res", "resp",
)  # fmt: skip
_BARE = ("chosen", "preferred", "accepted", "better")  # that need no further word
_RATINGS = (
    "score", "rating", "reward", "avg_rating", "average_rating", "avg_score", "overall_score", "quality", "grade",
)  # fmt: skip
MARGINS = (
    "margin", "magnitude", "preference_strength", "strength", "score_diff", "rating_diff", "preference_margin",
    "score_delta", "rating_delta", "score_margin", "reward_margin", "rating_margin", "score_gap",
)  # fmt: skip


def _pairs(stems: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for good, bad in _OPPOSITES:
        found += [(f"{good}_{stem}", f"{bad}_{stem}") for stem in stems]
        found += [(f"{stem}_{good}", f"{stem}_{bad}") for stem in stems]
    return found


CHOICES = [*((good, bad) for good, bad in _OPPOSITES if good in _BARE), *_pairs(_ANSWERS), ("y_w", "y_l"), ("yw", "yl")]
# If there are no others: the answer, and one that was rejected (ms-swift).
REJECTED = [
    *((stem, f"rejected_{stem}") for stem in _ANSWERS), ("messages", "rejected_response"),
]  # fmt: skip
CHOICE_RATINGS = _pairs(_RATINGS)


@lru_cache(maxsize=1024)
def find_choice(columns: tuple[str, ...]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer. None if there are none, or several pairs of them."""
    names = {plain(column): column for column in columns}
    for pairs in (CHOICES, REJECTED):
        if found := [(names[good], names[bad]) for good, bad in pairs if good in names and bad in names]:
            break
    return found[0] if len(found) == 1 or (found and found[0] == ("chosen", "rejected")) else None


def choice_ratings(row: Row) -> tuple[float, float] | None:
    """The ratings of the better and the worse answer, in columns of their own or in `metadata`. Raises DataError if
    they are no numbers."""
    metadata = row.get("metadata")
    for place in (row, metadata) if isinstance(metadata, dict) else (row,):
        if columns := _rating_columns(tuple(place)):
            one, two = place[columns[0]], place[columns[1]]
            if is_empty(one) or is_empty(two):
                continue
            scores = number(one), number(two)
            if scores[0] is None or scores[1] is None:
                column, value = columns if scores[0] is None else columns[::-1], one if scores[0] is None else two
                raise DataError(f"'{column[0]}' must be a finite number, found {describe(value)}", field=column[0])
            return scores[0], scores[1]
    return None


@lru_cache(maxsize=1024)
def _rating_columns(columns: tuple[str, ...]) -> tuple[str, str] | None:
    names = {plain(column): column for column in columns}
    known = ((names[good], names[bad]) for good, bad in CHOICE_RATINGS if good in names and bad in names)
    return next(known, None) or next(_judged_columns(names), None)


def _judged_columns(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of ratings with the name of their judge, such as `chosen_rm_score` and `rejected_rm_score`."""
    for name, column in names.items():
        for good, bad in _OPPOSITES[:2]:
            stem = name.removeprefix(f"{good}_") if name.startswith(f"{good}_") else name.removesuffix(f"_{good}")
            other = name.replace(good, bad)
            if stem != name and other in names and "rating" in meanings(stem):
                yield column, names[other]


@lru_cache(maxsize=1024)
def _margin_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    return named(columns, MARGINS)


def margin_of(row: Row) -> float | None:
    """By how much the better answer is better. Raises DataError for a margin that is no number."""
    for column in _margin_columns(tuple(row)):
        if is_empty(row[column]):
            continue
        if (value := number(row[column])) is not None:
            return value
        if plain(column) == "margin":
            raise DataError(f"'{column}' must be a finite number, found {describe(row[column])}", field=column)
    return None


def is_equal(row: Row) -> bool:
    """Whether a strength of 0 says that neither answer is better."""
    strengths = [c for c in _margin_columns(tuple(row)) if plain(c) in ("preference_strength", "strength", "magnitude")]
    return any(number(row[column]) == 0 for column in strengths)


def why_undecided(row: Row) -> str | None:
    """Why the ratings of a pair do not say that the chosen answer is better; None if they do, or if there are none."""
    columns = tuple(row)
    if _rating_columns(columns) is None and not _margin_columns(columns) and "metadata" not in row:
        return None
    return _why_undecided(row, choice_ratings(row))


def _why_undecided(row: Row, scores: tuple[float, float] | None) -> str | None:
    if is_equal(row) or (scores and scores[0] == scores[1]):
        return "tie"
    margins = [number(row[column]) for column in _margin_columns(tuple(row))]
    contradicted = (scores and scores[0] < scores[1]) or any(margin is not None and margin < 0 for margin in margins)
    return "scores contradict the choice" if contradicted else None


# ---- the prompt of a pair


def prompt_beside(row: Row) -> tuple[Message, ...] | None:
    """The prompt, if it has a column of its own: a question, or a conversation that ends with the user."""
    if columns := question_columns(row):
        return question_of(row, columns)
    if (column := turns_column(row)) is not None:
        turns = parse_turns(row[column], column)
        return turns if turns and turns[-1].role == "user" else None
    if len(filled(row, ("prompt", "instruction", "question", "query", "input"))) > 1:
        found = ", ".join(filled(row, ("prompt", "instruction", "question", "query", "input")))
        raise DataError(f"more than one column may hold the prompt, found {found}; keep one of them", field="prompt")
    return None


def used_by_prompt(row: Row) -> tuple[str, ...]:
    columns = question_columns(row) or [column for column in [turns_column(row)] if column]
    return (*columns, "history")


def answer_in(
    row: Row, column: str, prompt: tuple[Message, ...] | None, asked: object = None
) -> tuple[tuple[Message, ...], str]:
    """(prompt, answer) of a column that has an answer, or a conversation that ends with it: text, messages, or one
    message. `prompt` is that of a column of its own, if there is one, and `asked` the content of that column."""
    value: Any = row.get(column)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str) and (talk := _transcript(value, prompt)):
        messages = talk
    elif not isinstance(value, list):
        if prompt is None:
            raise DataError(f"'{column}' must be a list of messages, found {describe(row.get(column))}", field=column)
        if not isinstance(value, str) or not value.strip():
            found = f"must be text, found {describe(value)}" if not isinstance(value, str) else "is empty"
            raise DataError(f"'{column}' {found}", field=column)
        return prompt, answer_after(asked, value) if isinstance(asked, str) else value
    else:
        messages = parse_turns(value, column)
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"'{column}' must end with the assistant", field=column)
    inside, answer = messages[:-1], messages[-1].content
    if prompt is None:
        return inside, answer
    if not inside:
        return prompt, answer
    # A text prompt may be only one turn of the conversation (Tulu, UltraFeedback): use the messages if they contain it.
    single = len(prompt) == 1 and isinstance(row.get("prompt", ""), str)
    if inside == prompt or (single and prompt[0] in inside) or inside[-len(prompt) :] == prompt:
        return inside, answer
    if _without_system(inside) == _without_system(prompt):
        return (inside if inside[0].role == "system" else prompt), answer
    raise DataError(f"'{column}' starts with other messages than 'prompt'; leave only the answer in it", field=column)


def _transcript(text: str, prompt: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
    """The messages of a whole conversation in one text. An answer may be a dialogue that was asked for, so next to a
    prompt the text is a transcript only if it repeats the prompt."""
    if prompt is None:
        return spoken_in(text)
    try:
        talk = spoken_in(text)
    except DataError:
        return None
    return talk if talk and talk[:-1] == prompt else None


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[1:] if messages and messages[0].role == "system" else messages


def pair_of(row: Row, good: str, bad: str) -> tuple[tuple[Message, ...], str, str]:
    """(prompt, better answer, worse answer)."""
    questions = question_columns(row)
    prompt = question_of(row, questions) if questions else prompt_beside(row)
    asked = row[questions[0]] if questions else None
    chosen_prompt, chosen = answer_in(row, good, prompt, asked)
    if prompt is None and isinstance(row.get(good), list) and isinstance(row.get(bad), str):
        prompt = chosen_prompt  # one conversation, and another answer for its end
    rejected_prompt, rejected = answer_in(row, bad, prompt, asked)
    if chosen_prompt != rejected_prompt:
        raise DataError(f"'{good}' and '{bad}' may differ in the last message only", field=bad)
    return chosen_prompt, chosen, rejected


def _last_text(value: Any) -> object:
    last = value[-1] if isinstance(value, list) and value else value
    return next((last[key] for key in TEXT_KEYS if key in last), None) if isinstance(last, dict) else last


def is_choice(row: Row) -> bool:
    found = find_choice(tuple(row))
    return found is not None and all(isinstance(row[column], str | list | dict) for column in found)


def choice(row: Row) -> Ranking | Drop:
    """The better of two answers has a column of its own. Equal ratings are a tie: it is chance which was chosen."""
    found = find_choice(tuple(row))
    if found is None:
        raise DataError("the row has not exactly one better and one worse answer, such as chosen and rejected")
    for column in found:
        if reason := why_unusable(_last_text(row[column])):
            return Drop(reason)
    prompt, *answers = pair_of(row, *found)
    ratings = choice_ratings(row)
    reason = _why_undecided(row, ratings)
    scores = ratings or ((0.0, 0.0) if reason == "tie" else (1.0, 0.0))
    unclear = None if reason == "tie" else reason
    meta = rest(row, *used_by_prompt(row), *found, "messages", "margin")
    return Ranking(prompt, answers, scores, meta, margin=margin_of(row), unclear=unclear)


def has_ratings(row: Row) -> bool:
    try:
        return choice_ratings(row) is not None
    except DataError:
        return False


def scored(row: Row) -> Ranking | Drop:
    """UltraFeedback binarized: chosen and rejected with a rating each."""
    if _rating_columns(tuple(row)) is None and choice_ratings(row) is None:
        raise DataError("'score_chosen' and 'score_rejected' are missing", field="score_chosen")
    return choice(row)


def read_by_choice(row: Row) -> tuple[str, ...]:
    return used_by_prompt(row)


def always_read_by_choice(columns: tuple[str, ...]) -> tuple[str, ...]:
    ratings = _rating_columns(columns) or ("metadata",)
    question = only_question(columns) or "prompt"
    return (*(find_choice(columns) or ()), *ratings, *_margin_columns(columns), question, "messages", "history")
