"""What every format shares: a system prompt in a column of its own, and end marks behind answers."""

from dataclasses import replace
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.transcripts import bare_answer, markup_of
from data_schema.formats.meaning import meanings
from data_schema.formats.parts import Drop, Format, Origin, Outcome, Reader, Row
from data_schema.formats.ranking_parts import GATHERED, system_columns, system_of
from data_schema.messages import Message
from data_schema.records import Comparison, Demonstration, Document


def framed(form: Format) -> Format:
    """The format, with readers that also read a column with a system prompt and remove end marks behind answers."""
    readers = {kind: reader if kind is Document else _framed(reader) for kind, reader in form.readers.items()}
    return form._replace(readers=readers)


def _framed(reader: Reader) -> Reader:
    def read(row: Row, origin: Origin) -> Outcome:
        if GATHERED in row or system_columns(tuple(row)):
            system, bare = system_of(row), _without_system(row)
        else:
            system, bare = None, row
        outcome = reader(bare, origin)
        if isinstance(outcome, list):
            return [_finished(part, system) for part in outcome]
        return _finished(outcome, system)

    return read


def _without_system(row: Row) -> Row:
    bare = {column: value for column, value in row.items() if "system" not in meanings(column)}
    if GATHERED in bare:
        bare[GATHERED] = [_without_system(each) for each in bare[GATHERED]]
    return bare


def _finished(part: Any, system: str | None) -> Any:
    """The record with the system message in front, and without the end marks of chat markup behind its answers."""
    if isinstance(part, Drop | Document):
        return part
    if isinstance(part, Comparison):
        responses = tuple(map(bare_answer, part.responses))
        if responses != part.responses:
            part = replace(part, responses=responses)
    elif isinstance(part, Demonstration):
        answer = part.messages[-1]
        if (text := bare_answer(answer.content)) is not answer.content:
            part = replace(part, messages=(*part.messages[:-1], Message(answer.role, text)))
    for message in part.messages if isinstance(part, Demonstration) else part.prompt:
        if message.content[:1] in "<[" and (style := markup_of(message.content)):
            raise DataError(
                f"a message begins with chat markup ({style}), around which the template would put its own; write the"
                " conversation as messages",
                field="messages",
            )
    if system is None:
        return part
    messages = part.messages if isinstance(part, Demonstration) else part.prompt
    if messages[0].role == "system":
        if messages[0].content.strip() != system.strip():
            raise DataError("the row has a system message in its messages and another in a column; remove one of them")
        return part
    messages = (Message("system", system), *messages)
    return replace(part, **{"messages" if isinstance(part, Demonstration) else "prompt": messages})
