"""One answer per row under any of the usual names: in a column of its own, at the end of a list of turns, or in one
text with the question."""

from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.formats.general.columns import (
    ANSWERS,
    check_beside,
    model_answers,
    question_columns,
    question_of,
    turns_column,
)
from data_schema.formats.general.transcripts import answer_after, spoken_in, style_of
from data_schema.formats.general.turns import TEXT_KEYS, TURNS, is_turns, parse_turns
from data_schema.formats.meaning import filled, is_empty, meanings, named, plain
from data_schema.formats.parts import Drop, Origin, Outcome, Reader, Row, rest, text_of
from data_schema.formats.ranking_parts import GATHERED
from data_schema.messages import check_learned, check_text
from data_schema.records import Demonstration, Message, Prompt


class Single(NamedTuple):
    """Where a row's question and its one answer are."""

    question: tuple[str, ...]  # columns; empty: the question is in the column of the answer
    answer: str  # a column of text or messages, or a list of turns that ends with the answer

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.question, self.answer)


def find_single(row: Row) -> Single | None:
    """None if the row has no answer, several, or several columns that may be its question."""
    if filled(row, ("rejected", "chosen")) and all(not isinstance(row.get(c), bool) for c in ("chosen", "rejected")):
        return None
    talk = turns_column(row)
    questions = question_columns(row)
    answers = _answer_columns(row, questions)
    if talk is not None and (talk not in questions and not (plain(talk) == "context" and answers)):
        return Single((), talk)
    return Single(tuple(questions), answers[0]) if questions and len(answers) == 1 else None


def _answer_columns(row: Row, questions: list[str]) -> list[str]:
    found = [
        column for column in filled(row, ANSWERS) if column not in questions and not meanings(column) & {"verdict"}
    ]
    found += [column for column in model_answers(tuple(row)) if column not in found and not is_empty(row[column])]
    if not found:  # an answer that is missing: the row keeps its format
        return [column for column in named(tuple(row), ANSWERS) if column not in questions][:1]
    if {"problem", "question"} & {plain(column) for column in questions} and len(found) > 1:
        worked = [column for column in found if plain(column) == "solution"]
        if worked and {plain(column) for column in found} <= {"solution", "answer"}:
            return worked  # a worked solution, and its result
    return [column for i, column in enumerate(found) if all(row[column] != row[other] for other in found[:i])]


def question_and_answer(row: Row, place: Single) -> tuple[tuple[Message, ...], object]:
    """(the messages before the answer, the answer, which may be unusable)."""
    value = row[place.answer]
    if not place.question:
        return _split_turns(value, place.answer)
    question = question_of(row, list(place.question))
    if is_turns(value):
        before, answer = _split_turns(value, place.answer)
        return (*question, *before), answer
    asked = row[place.question[0]]
    return question, answer_after(asked, value) if isinstance(asked, str) and isinstance(value, str) else value


def _split_turns(value: list[Any], name: str) -> tuple[tuple[Message, ...], object]:
    """(the turns before the last, the text of the last, which may be blank)."""
    check_learned(value, name)
    said = next((value[-1][key] for key in TEXT_KEYS if isinstance(value[-1], dict) and key in value[-1]), None)
    if isinstance(said, str) and not said.strip():
        return parse_turns(value[:-1], name), said
    turns = parse_turns(value, name)
    if turns[-1].role != "assistant":
        raise DataError(f"'{name}' must end with an answer", field=name)
    return turns[:-1], turns[-1].content


def asked_of(row: Row, place: Single) -> tuple[Message, ...]:
    """The prompt, for which the row need have no usable answer."""
    if place.question:
        return question_of(row, list(place.question))
    whole = parse_turns(row[place.answer], place.answer)
    return whole[:-1] if whole and whole[-1].role == "assistant" else whole


def meta_of(row: Row, place: Single, *used: str) -> dict[str, Any]:
    return rest(row, *place.columns, "history", *used, GATHERED)


def read_by_single(row: Row) -> tuple[str, ...]:
    place = find_single(row)
    return (*place.columns, "history") if place else ()


# ---- plain pairs


def is_pair(row: Row) -> bool:
    """A question and its answer in columns of their own."""
    place = find_single(row)
    return place is not None and bool(place.question)


def is_talk(row: Row) -> bool:
    column = turns_column(row)
    return column is not None and plain(column) not in ("context", "trajectory")


def read_by_talk(row: Row) -> tuple[str, ...]:
    column = turns_column(row)
    return (column,) if column else ()


def place_of(row: Row) -> Single:
    if (place := find_single(row)) is None:
        raise DataError(
            f"the row has not exactly one question and one answer, found {', '.join(row) or 'no columns'}; rename its"
            " columns to prompt and completion, and remove others of that kind"
        )
    return place


def pair_demonstration(row: Row, origin: Origin) -> Outcome:
    place = place_of(row)
    check_beside(row, place.columns)
    question, answer = question_and_answer(row, place)
    messages = (*question, Message("assistant", check_text(answer, place.answer)))
    return Demonstration(*origin, messages=messages, meta=meta_of(row, place))


def pair_prompt(row: Row, origin: Origin) -> Outcome:
    """The answer stays in meta, as a judge may need it."""
    place = place_of(row)
    check_beside(row, place.columns)
    return Prompt(*origin, prompt=asked_of(row, place), meta=rest(row, *place.question, "history"))


PAIR_READERS: dict[type, Reader] = {Demonstration: pair_demonstration, Prompt: pair_prompt}

# ---- questions without an answer


_COMPARED = ("chosen", "rejected", "positive", "negative", "pos", "neg")  # of a question that has an answer


def is_question(row: Row) -> bool:
    columns = question_columns(row)
    return bool(columns) and not _answer_columns(row, columns) and not named(tuple(row), _COMPARED)


def read_by_question(row: Row) -> tuple[str, ...]:
    return (*question_columns(row), "history")


def question_prompt(row: Row, origin: Origin) -> Outcome:
    columns = question_columns(row)
    if not columns:
        raise DataError(f"the row has no question, only {', '.join(row) or 'no columns'}", field="prompt")
    check_beside(row, columns)
    return Prompt(*origin, prompt=question_of(row, columns), meta=rest(row, *columns, "history"))


QUESTION_READERS: dict[type, Reader] = {Prompt: question_prompt}

# ---- conversations


def talk_demonstration(row: Row, origin: Origin) -> Outcome:
    """The conversation up to its last answer."""
    column = turns_column(row) or next(iter(named(tuple(row), TURNS)), "messages")
    check_learned(row.get(column), column)
    turns = parse_turns(row.get(column), column)
    spoken = [message for message in turns if message.role != "system"]
    if spoken and spoken[0].role == "assistant":
        return Drop("starts with the assistant")  # the start of the page was cut off
    ended = turns[:-1] if turns and turns[-1].role == "user" else turns
    return Demonstration(*origin, messages=ended, meta=rest(row, column))


def talk_prompt(row: Row, origin: Origin) -> Outcome:
    column = turns_column(row) or next(iter(named(tuple(row), TURNS)), "messages")
    turns = parse_turns(row.get(column), column)
    return Prompt(
        *origin, prompt=turns[:-1] if turns and turns[-1].role == "assistant" else turns, meta=rest(row, column)
    )


TALK_READERS: dict[type, Reader] = {Demonstration: talk_demonstration, Prompt: talk_prompt}

# ---- a whole conversation in a column of text


def is_transcript(row: Row) -> bool:
    text = row["text"]
    if not isinstance(text, str) or style_of(text) is None:
        return False
    try:
        turns = spoken_in(text)
    except DataError:
        return True
    return any(message.role == "assistant" for message in turns or ())


def transcript_demonstration(row: Row, origin: Origin) -> Outcome:
    turns = spoken_in(text_of(row, "text")) or ()
    ended = turns[:-1] if turns and turns[-1].role == "user" else turns
    return Demonstration(*origin, messages=ended, meta=rest(row, "text"))


def transcript_prompt(row: Row, origin: Origin) -> Outcome:
    turns = spoken_in(text_of(row, "text")) or ()
    return Prompt(
        *origin, prompt=turns[:-1] if turns[-1:] and turns[-1].role == "assistant" else turns, meta=rest(row, "text")
    )


TRANSCRIPT_READERS: dict[type, Reader] = {Demonstration: transcript_demonstration, Prompt: transcript_prompt}
