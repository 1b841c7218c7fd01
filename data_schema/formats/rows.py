"""Asks every row of a file what the first ones were asked: whether its format fits, and whether it may be learned."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from data_schema.errors import DataError
from data_schema.formats.general.columns import histories
from data_schema.formats.general.refusals import refusal
from data_schema.formats.general.turns import unpacked
from data_schema.formats.meaning import HISTORIES, is_empty, meanings, named, plain
from data_schema.formats.parts import Format, NumberedRows, Row
from data_schema.formats.ranking_parts import GATHERED, gathered, system_columns
from data_schema.formats.table import FORMATS
from data_schema.records import KIND_NAMES, Document, Prompt

# Formats between which the rows of one file may change: the reader of one understands the others' rows.
FAMILIES = ({"preference", "scored_preference", "preference_implicit"},)
MARKED = ("kto", "kto_messages", "kto_alpaca", "kto_sharegpt", "kto_pair", "rated")  # whose prompts are as good as any


def unpacked_rows(rows: NumberedRows) -> NumberedRows:
    """The rows with lists of messages that are written as text as lists."""
    for number, row in rows:
        if isinstance(row, DataError):
            yield number, row
            continue
        try:
            yield number, unpacked(row)
        except DataError as error:
            yield number, error


class Checks(NamedTuple):
    """What has to be asked of a row with certain columns. All but `others` is known from their names."""

    missing: str | None  # a column of the format that the row lacks
    others: tuple[str, ...]  # more specific formats, which the row may be in
    may_leave_out: bool  # whether a part of the question may be left out
    may_refuse: bool  # whether a column may be a reason to refuse the row


NOTHING = Checks(None, (), False, False)


def suited_rows(rows: NumberedRows, name: str, kind: type, detected: bool) -> NumberedRows:
    """The rows, with a DataError in place of each that format `name` must not read as `kind`: it lacks a column, is in
    a more specific format (if the format was `detected`), or says something that the format passes over."""
    form = FORMATS[name]
    checks_of = _checks(name, kind, detected)
    for number, row in rows:
        if isinstance(row, DataError):
            yield number, row
            continue
        checks = checks_of(tuple(row))
        if checks is NOTHING:
            yield number, row
            continue
        problem = _lacking(row, checks.missing) or _other_format(row, name, checks.others)
        if problem is None and checks.may_leave_out:
            problem = _question_left_out(row, form)
        if problem is None and checks.may_refuse:
            problem = refusal(row, _read(row, form), KIND_NAMES[kind], form.judges, named=not detected)
        yield number, problem or row


def _checks(name: str, kind: type, detected: bool) -> Callable[[tuple[str, ...]], Checks]:
    """A function of a row's columns."""
    form, before = FORMATS[name], _more_specific(name, kind) if detected else []
    own, document = name == "records", kind is Document

    @lru_cache(maxsize=1024)
    def of(columns: tuple[str, ...]) -> Checks:
        checks = Checks(
            missing=min(form.columns.difference(columns), default=None),
            others=tuple(
                other for other in before if FORMATS[other].columns.issubset(columns) and FORMATS[other].may_be(columns)
            ),
            may_leave_out=not own and not document and _may_ask(columns, _perhaps_unread(columns, name)),
            may_refuse=not own and any(map(_may_refuse, _perhaps_unread(columns, name))),
        )
        return NOTHING if checks == NOTHING else checks

    return of


QUESTIONS = ("prompt", "instruction", "question", "query", "problem")  # of which a format reads one
# What is a part of the question, if it is not repeated in the column that is read.
PARTS = (*QUESTIONS[1:], "input", "context", "passage", "article", "document", "paragraph", "choices", "options")


def _may_ask(columns: tuple[str, ...], unread: tuple[str, ...]) -> bool:
    """Whether one of the columns that a format may not read may belong to the question that it reads."""
    return bool(named(columns, QUESTIONS) and named(unread, PARTS))


def _may_refuse(column: str) -> bool:
    return plain(column) in HISTORIES or bool(meanings(column) - {"system", "better", "hint", "talk"})


def _question_left_out(row: Row, form: Format) -> DataError | None:
    """An error if a text next to the question that is read belongs to it, by its name, and is not read."""
    columns = tuple(row)
    read = _read(row, form)
    asked = [row[column] for column in named(columns, QUESTIONS) if column in read and isinstance(row[column], str)]
    for column in named(columns, PARTS) if asked else ():
        if column in read or is_empty(row[column]):
            continue
        texts = row[column] if isinstance(row[column], list) else [row[column]]
        missing = any(isinstance(text, str) and text.strip() not in asked[0] for text in texts)
        if missing and not any(isinstance(text, str) and asked[0].strip() in text for text in texts):
            return DataError(
                f"'{column}' may belong to the question, but the format does not read it; put it into the prompt, or"
                " remove the column",
                field=column,
            )
    return None


def _lacking(row: Row, missing: str | None) -> DataError | None:
    if missing is None:
        return None
    return DataError(f"'{missing}' is missing; the row has {', '.join(row) or 'no columns'}", field=missing)


def _more_specific(name: str, kind: type) -> list[str]:
    """The formats that stand before `name` and that its rows must not be in."""
    names = list(FORMATS)
    return [
        other
        for other in (names[: names.index(name)] if name in names and kind is not Document else [])
        if kind in FORMATS[other].readers
        and not any({other, name} <= family for family in FAMILIES)
        and not (kind is Prompt and other in MARKED)
    ]


def _other_format(row: Row, name: str, others: tuple[str, ...]) -> DataError | None:
    for other in others:
        if FORMATS[other].looks_right(row):
            return DataError(
                f"the row is in format {other}, but the first rows of the data in {name}; divide the file",
                field="format",
                reason=f"in format {other}, not {name}",
            )
    return None


def _read(row: Row, form: Format) -> frozenset[str]:
    """The columns of the row that the format reads, its system prompt included."""
    read = {*form.columns, *form.always_reads(tuple(row)), *form.reads(row), *system_columns(tuple(row))}
    return frozenset(read | set(histories(tuple(row))) if "history" in read else read)


@lru_cache(maxsize=1024)
def _perhaps_unread(columns: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The columns that the format may not read, depending on the row."""
    read = {*FORMATS[name].columns, *FORMATS[name].always_reads(columns), *system_columns(columns)}
    if "history" in read:
        read.update(histories(columns))
    return tuple(column for column in columns if column not in read)


def count_unread(row: Row, name: str, counts: Counter[str]) -> None:
    """Count the columns with content that the format does not read, in a row or in the rows that it was made of."""
    if name == "records":
        return
    if GATHERED not in row and not _perhaps_unread(tuple(row), name):
        return
    for each in gathered(row):
        columns = [column for column in _perhaps_unread(tuple(each), name) if not is_empty(each[column])]
        if columns:
            read = _read(each, FORMATS[name])
            counts.update(column for column in columns if column not in read)
