"""What the readers of published formats share: their outcome, and the parts they take from a row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_schema.errors import DataError
from data_schema.records import Message, Record, check_text, parse_messages

Row = Mapping[str, Any]


class Drop(NamedTuple):
    reason: str


class Origin(NamedTuple):
    id: str  # what the record is to be called
    source: str


Outcome = Record | Drop | Sequence[Record | Drop]
Reader = Callable[[Row, Origin], Outcome]


def text_of(row: Row, column: str) -> str:
    if column not in row:
        raise DataError(f"'{column}' is missing; the row has {', '.join(row) or 'no columns'}", field=column)
    return check_text(row[column], column)


def rest(row: Row, *used: str) -> dict[str, Any]:
    """The columns that no field holds. Hub rows fill columns that a row lacks with None; such say nothing."""
    return {key: value for key, value in row.items() if key not in used and value is not None}


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The column `prompt`, text or messages."""
    if isinstance(row.get("prompt"), list):
        return parse_messages(row["prompt"], "prompt")
    return (Message("user", text_of(row, "prompt")),)
