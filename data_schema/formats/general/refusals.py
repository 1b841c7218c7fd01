"""Why a row must not become a record, by the columns that its format does not read."""

from collections.abc import Collection, Mapping
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.meaning import HISTORIES, is_empty, is_tie, meanings, plain, shown, unlearned, verdict_of


def refusal(row: Mapping[str, Any], read: Collection[str], purpose: str, judges: bool, named: bool) -> DataError | None:
    """Why a row must not become a record, by columns that its format does not read; None if it may.

    `judges`: whether the format itself decides which answers are good. `named`: whether the user named the format, and
    so decided that ratings do not matter."""
    if purpose == "documents":
        return None
    compared = purpose == "comparisons"
    others = {column: value for column, value in row.items() if column not in read and not is_empty(value)}
    if purpose != "prompts" and (why := unlearned(others)):
        return _refused(f"marked as not to be learned: {why}", why)
    if compared and (column := is_tie(others)):
        return _refused(f"'{column}' says that neither answer is better", column)
    for column, value in others.items():
        means = meanings(column)
        if "seen" in means and _says_something(value):
            return _refused(
                f"'{column}' has content that the model would not see; text is all that is supported", column
            )
        if plain(column) in HISTORIES:
            return _refused(
                f"'{column}' has earlier turns, which the format does not read; write the row as messages", column
            )
        if purpose != "demonstrations" or judges:
            continue
        if means & {"verdict", "fault", "mark", "rating"}:
            good = verdict_of(column, value)
            if good is False:
                return _refused(f"'{column}' marks the answer as bad", column)
            if good is None and "rating" in means and not named:
                fix = "filter by it and remove the column, or name the format to use all rows"
                return _refused(f"'{column}' rates the answer, so it may be a bad one; {fix}", column)
            if good is None and means & {"verdict", "fault"} and not isinstance(value, dict | list):
                return _refused(f"'{column}' must be true or false, found {shown(value)}", column)
    return None


def _says_something(value: object) -> bool:
    """Whether there is text inside a value; switches such as `enable_thinking` do not count."""
    if isinstance(value, dict):
        return any(_says_something(item) for item in value.values())
    return not is_empty(value) and not isinstance(value, bool)


def _refused(message: str, field: str) -> DataError:
    return DataError(message, field=field)
