"""Shared by the readers of published formats: their results, and functions that extract parts of a row."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.formats.general.transcripts import asked_in
from data_schema.records import Message, Record, check_text, describe, parse_messages

Row = Mapping[str, Any]


class Drop(NamedTuple):
    reason: str


class Origin(NamedTuple):
    id: str  # the id that the record gets
    source: str


Outcome = Record | Drop | Sequence[Record | Drop]
Reader = Callable[[Row, Origin], Outcome]
# (row number from 1, row or its error)
NumberedRows = Iterator[tuple[int, Row | DataError]]
Gather = Callable[[NumberedRows], NumberedRows]


def _nothing_else(row: Row) -> Collection[str]:
    return ()


def _always_nothing(columns: tuple[str, ...]) -> Collection[str]:
    return ()


class Format(NamedTuple):
    columns: frozenset[str]  # a row of this format has at least these ..
    looks_right: Callable[[Row], bool]  # .. and passes this
    readers: dict[type, Reader]
    # Rows of the file (with all `columns`) -> rows for the readers: rows that belong together merged into one, or the
    # items of a row as separate rows. DataErrors pass through. `skip` and `limit` count the resulting rows.
    gather: Gather | None = None
    # Other columns of a row that the readers understand, and whether they judge how good an answer is. A column with
    # meaning that a format does not read is refused or counted (meaning.py).
    reads: Callable[[Row], Collection[str]] = _nothing_else
    judges: bool = False
    # The columns that the readers understand in any row with the same columns.
    always_reads: Callable[[tuple[str, ...]], Collection[str]] = _always_nothing
    # Whether a row with these columns may pass `looks_right`, which is asked once for all rows with the same columns.
    may_be: Callable[[tuple[str, ...]], object] = bool
    header: tuple[str, ...] | None = None  # columns of a .tsv, for a format without a header line


def text_of(row: Row, column: str) -> str:
    if column not in row:
        raise DataError(f"'{column}' is missing; the row has {', '.join(row) or 'no columns'}", field=column)
    return check_text(row[column], column)


def rest(row: Row, *used: str) -> dict[str, Any]:
    """The columns not used for a field. None is left out: hub rows have it in columns that a row lacks."""
    return {key: value for key, value in row.items() if key not in used and value is not None}


NO_INPUT = re.compile(r"\W*(no ?input|n/?a|none|not applicable)\W*", re.IGNORECASE)


def with_input(instruction: str, context: str) -> str:
    """Instruction and input as one message; an input that only says there is none, such as "n/a", is ignored."""
    return instruction if not context.strip() or NO_INPUT.fullmatch(context) else f"{instruction}\n\n{context}"


# Stanford's template, filled, up to the answer.
_FILLED = (
    r"\s*(?:Below is an instruction that describes a task.*?)?### Instruction:\s*(?P<instruction>.*?)"
    r"(?:\n\s*### Input:\s*(?P<input>.*?))?\n\s*### Response:"
)
FILLED_PROMPT = re.compile(_FILLED + r"\s*", re.DOTALL)
FILLED_TEXT = re.compile(_FILLED + r"(?P<answer>.*)", re.DOTALL)


def unwrapped(prompt: str) -> str:
    """A prompt without Stanford's template around it, so that templates are not nested."""
    filled = FILLED_PROMPT.fullmatch(prompt)
    return with_input(filled["instruction"], filled["input"] or "") if filled else prompt


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The column `prompt`, which is text or messages."""
    if isinstance(row.get("prompt"), list):
        return parse_messages(row["prompt"], "prompt")
    text = text_of(row, "prompt")
    return asked_in(text) or (Message("user", unwrapped(text)),)


def spread(column: str) -> Gather:
    """A gather that gives every item of the list in `column` its own row, with (position, item) in that column.

    A row without such a list stays unchanged; `item_of` raises an error for it."""

    def rows_of_items(rows: NumberedRows) -> NumberedRows:
        for number, row in rows:
            if isinstance(row, DataError) or not isinstance(row[column], list):
                yield number, row
            else:
                yield from ((number, {**row, column: (i, item)}) for i, item in enumerate(row[column]))

    return rows_of_items


def item_of(row: Row, column: str, origin: Origin) -> tuple[str, dict[str, Any], Origin]:
    """(name in errors, item, its origin) of a row from `spread`. Raises DataError if the item is not an object."""
    if not isinstance(row[column], tuple):
        raise DataError(f"'{column}' must be a list, found {describe(row[column])}", field=column)
    i, item = row[column]
    name = f"{column}[{i}]"
    if not isinstance(item, dict):
        raise DataError(f"'{name}' must be an object, found {describe(item)}", field=column)
    return name, item, Origin(f"{origin.id}.{i + 1}", origin.source)
