"""What the readers of published formats share: their outcome, and the parts they take from a row."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.records import Message, Record, check_text, describe, parse_messages

Row = Mapping[str, Any]


class Drop(NamedTuple):
    reason: str


class Origin(NamedTuple):
    id: str  # what the record is to be called
    source: str


Outcome = Record | Drop | Sequence[Record | Drop]
Reader = Callable[[Row, Origin], Outcome]
# (row number from 1, row or what is wrong with it)
NumberedRows = Iterator[tuple[int, Row | DataError]]
Gather = Callable[[NumberedRows], NumberedRows]


class Format(NamedTuple):
    columns: frozenset[str]  # a row of this format has at least these ..
    looks_right: Callable[[Row], bool]  # .. and passes this
    readers: dict[type, Reader]
    # Rows as the file has them (with all `columns`) -> rows as the readers want them: what belongs together in one row,
    # or the parts of a row in rows of their own. DataErrors pass through. `skip` and `limit` count what comes out.
    gather: Gather | None = None
    header: tuple[str, ...] | None = None  # the cells of a .tsv without a header line, for a format that has none


def text_of(row: Row, column: str) -> str:
    if column not in row:
        raise DataError(f"'{column}' is missing; the row has {', '.join(row) or 'no columns'}", field=column)
    return check_text(row[column], column)


def rest(row: Row, *used: str) -> dict[str, Any]:
    """The columns that no field holds. Hub rows fill columns that a row lacks with None; such say nothing."""
    return {key: value for key, value in row.items() if key not in used and value is not None}


NO_INPUT = re.compile(r"\W*(no ?input|n/?a|none|not applicable)\W*", re.IGNORECASE)


def with_input(instruction: str, context: str) -> str:
    """Instruction and input as one message; an input that only says that there is none counts as none."""
    return instruction if not context.strip() or NO_INPUT.fullmatch(context) else f"{instruction}\n\n{context}"


# Stanford's template, filled, up to the answer.
_FILLED = (
    r"\s*Below is an instruction that describes a task.*?### Instruction:\s*(?P<instruction>.*?)"
    r"(?:\n\s*### Input:\s*(?P<input>.*?))?\n\s*### Response:"
)
FILLED_PROMPT = re.compile(_FILLED + r"\s*", re.DOTALL)
FILLED_TEXT = re.compile(_FILLED + r"(?P<answer>.*)", re.DOTALL)


def unwrapped(prompt: str) -> str:
    """A prompt without Stanford's template around it, so that none is put around another."""
    filled = FILLED_PROMPT.fullmatch(prompt)
    return with_input(filled["instruction"], filled["input"] or "") if filled else prompt


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The column `prompt`, text or messages."""
    if isinstance(row.get("prompt"), list):
        return parse_messages(row["prompt"], "prompt")
    return (Message("user", unwrapped(text_of(row, "prompt"))),)


def spread(column: str) -> Gather:
    """A gather that gives every item of the list in `column` a row of its own, which holds (position, item) there.

    A row without such a list stays as it is; `item_of` complains about it.
    """

    def rows_of_items(rows: NumberedRows) -> NumberedRows:
        for number, row in rows:
            if isinstance(row, DataError) or not isinstance(row[column], list):
                yield number, row
            else:
                yield from ((number, {**row, column: (i, item)}) for i, item in enumerate(row[column]))

    return rows_of_items


def item_of(row: Row, column: str, origin: Origin) -> tuple[str, dict[str, Any], Origin]:
    """(name in errors, item, its origin) of a row that `spread` made. Raises DataError when the item is no object."""
    if not isinstance(row[column], tuple):
        raise DataError(f"'{column}' must be a list, found {describe(row[column])}", field=column)
    i, item = row[column]
    name = f"{column}[{i}]"
    if not isinstance(item, dict):
        raise DataError(f"'{name}' must be an object, found {describe(item)}", field=column)
    return name, item, Origin(f"{origin.id}.{i + 1}", origin.source)
