"""Asks every row of a file what the first ones were asked: whether its format fits, and whether it may be learned."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from data_schema.errors import DataError
from data_schema.formats.general.columns import unpacked
from data_schema.formats.meaning import meanings, refusal, unread
from data_schema.formats.parts import Format, NumberedRows, Row
from data_schema.formats.ranking_parts import gathered
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


def suited_rows(rows: NumberedRows, name: str, kind: type, detected: bool) -> NumberedRows:
    """The rows, with a DataError in place of each that format `name` must not read as `kind`: it lacks a column, is in
    a more specific format (if the format was `detected`), or says something that the format passes over."""
    form = FORMATS[name]
    more_specific = _more_specific(name, kind)
    for number, row in rows:
        if isinstance(row, DataError):
            yield number, row
        else:
            problem = _lacking(row, form) or (_other_format(row, name, more_specific) if detected else None)
            if problem is None and name != "records" and _concerns(tuple(row)):
                problem = refusal(row, _read(row, form), KIND_NAMES[kind], form.judges, named=not detected)
            yield number, problem or row


@lru_cache(maxsize=1024)
def _concerns(columns: tuple[str, ...]) -> bool:
    """Whether a column may be a reason to refuse the row."""
    return any(meanings(column) - {"system", "better", "hint"} for column in columns)


def _lacking(row: Row, form: Format) -> DataError | None:
    missing = sorted(form.columns - row.keys())
    if not missing:
        return None
    return DataError(f"'{missing[0]}' is missing; the row has {', '.join(row) or 'no columns'}", field=missing[0])


def _more_specific(name: str, kind: type) -> Callable[[tuple[str, ...]], list[str]]:
    """A function of a row's columns: the formats that stand before `name` and that these columns may be in."""
    names = list(FORMATS)
    before = [
        other
        for other in (names[: names.index(name)] if name in names and kind is not Document else [])
        if kind in FORMATS[other].readers
        and not any({other, name} <= family for family in FAMILIES)
        and not (kind is Prompt and other in MARKED)
    ]
    known: dict[tuple[str, ...], list[str]] = {}

    def of(columns: tuple[str, ...]) -> list[str]:
        if columns not in known:
            known[columns] = [other for other in before if FORMATS[other].columns.issubset(columns)]
        return known[columns]

    return of


def _other_format(row: Row, name: str, more_specific: Callable[[tuple[str, ...]], list[str]]) -> DataError | None:
    for other in more_specific(tuple(row)):
        if FORMATS[other].looks_right(row):
            return DataError(
                f"the row is in format {other}, but the first rows of the data in {name}; divide the file",
                field="format",
                reason=f"in format {other}, not {name}",
            )
    return None


def _read(row: Row, form: Format) -> frozenset[str]:
    """The columns of the row that the format reads, its system prompt included."""
    return frozenset((*form.columns, *form.reads(row), *(column for column in row if "system" in meanings(column))))


def count_unread(row: Row, name: str, counts: Counter[str]) -> None:
    """Count the columns with content that the format does not read, in a row or in the rows that it was made of."""
    if name == "records":
        return
    form = FORMATS[name]
    for each in gathered(row):
        counts.update(unread(each, _read(each, form)))
