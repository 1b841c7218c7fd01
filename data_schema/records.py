"""The records that flow through the pipeline: demonstrations, comparisons, prompts and documents.

A record is validated when it is constructed, so code that receives one need not check it again.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from data_schema.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant")


def check_text(value: object, name: str) -> str:
    """Return `value` if it is text and not blank. Raises DataError naming field `name`."""
    if not isinstance(value, str):
        raise DataError(f"'{name}' must be text, found {describe(value)}", field=name)
    if not value.strip():
        raise DataError(f"'{name}' is empty", field=name)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can encode half a surrogate pair; UTF-8 cannot
            raise DataError(f"'{name}' contains half a surrogate pair, which is not a character", field=name) from None
    return value


def describe(value: object) -> str:
    """A short description of a value of the wrong type, in JSON's terms."""
    if value is None:
        return "nothing (null)"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{names.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


@dataclass(frozen=True)
class Message:
    role: str  # one of ROLES
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            found = f"'{self.role}'" if isinstance(self.role, str) else describe(self.role)
            raise DataError(f"'role' must be one of {', '.join(ROLES)}, found {found}", field="role")
        check_text(self.content, "content")


def _check_turns(messages: Sequence[object], name: str, last: str) -> tuple[Message, ...]:
    """Check for an optional system message, then user and assistant alternating, user first and `last` at the end."""
    turns = tuple(messages)
    for i, message in enumerate(turns):
        if not isinstance(message, Message):
            raise DataError(f"'{name}[{i}]' must be a message, found {describe(message)}", field=name)
    roles = [m.role for m in turns if isinstance(m, Message)]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(spoken))]
    if spoken != expected:
        raise DataError(
            f"'{name}' must alternate user and assistant after an optional system message, found {' '.join(roles)}",
            field=name,
        )
    if not spoken or spoken[-1] != last:
        found = roles[-1] if roles else "no messages"
        raise DataError(f"'{name}' must end with the {last}, found {found}", field=name)
    return tuple(m for m in turns if isinstance(m, Message))


@dataclass(frozen=True)
class _Record:
    id: str
    source: str  # where the row came from, as the recipe names it

    def _check_common(self, group: object, meta: object) -> None:
        check_text(self.id, "id")
        check_text(self.source, "source")
        if group is not None:
            check_text(group, "group")
        if not isinstance(meta, dict) or not all(isinstance(key, str) for key in meta):
            raise DataError(f"'meta' must be an object with text keys, found {describe(meta)}", field="meta")


@dataclass(frozen=True)
class Demonstration(_Record):
    """A conversation whose last answer is to be imitated."""

    messages: tuple[Message, ...]  # ends with the assistant
    group: str | None = None  # user, tree or post: a split keeps the rows of one group together
    meta: dict[str, Any] = field(default_factory=dict, hash=False)  # columns that have no field of their own

    def __post_init__(self) -> None:
        self._check_common(self.group, self.meta)
        object.__setattr__(self, "messages", _check_turns(self.messages, "messages", last="assistant"))


@dataclass(frozen=True)
class Comparison(_Record):
    """Two or more responses to one prompt, ranked."""

    prompt: tuple[Message, ...]  # ends with the user
    responses: tuple[str, ...]
    ranks: tuple[int, ...]  # one per response; 1 is best, equal ranks are a tie
    labeler: str | None = None
    margin: float | None = None
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._check_common(self.group, self.meta)
        object.__setattr__(self, "prompt", _check_turns(self.prompt, "prompt", last="user"))
        object.__setattr__(self, "responses", tuple(self.responses))
        object.__setattr__(self, "ranks", tuple(self.ranks))
        if len(self.responses) < 2:
            raise DataError(f"'responses' must have two or more, found {len(self.responses)}", field="responses")
        for i, response in enumerate(self.responses):
            check_text(response, f"responses[{i}]")
        if len(self.ranks) != len(self.responses):
            raise DataError(
                f"'ranks' must have one rank per response, found {len(self.ranks)} for {len(self.responses)}",
                field="ranks",
                reason="'ranks' must be as many as the responses",
            )
        for rank in self.ranks:
            if type(rank) is not int or rank < 1:
                raise DataError(f"'ranks' must be whole numbers from 1 (best), found {describe(rank)}", field="ranks")
        self._check_same_text()
        if self.labeler is not None:
            check_text(self.labeler, "labeler")
        if self.margin is not None:
            number = isinstance(self.margin, int | float) and not isinstance(self.margin, bool)
            if not number or not math.isfinite(self.margin):
                raise DataError(f"'margin' must be a finite number, found {describe(self.margin)}", field="margin")
            object.__setattr__(self, "margin", float(self.margin))

    def _check_same_text(self) -> None:
        rank_of: dict[str, int] = {}
        for response, rank in zip(self.responses, self.ranks, strict=True):
            if rank_of.setdefault(response.strip(), rank) != rank:
                who = "chosen and rejected" if len(self.responses) == 2 else "two responses with different ranks"
                raise DataError(f"{who} are the same text", field="responses")


@dataclass(frozen=True)
class Prompt(_Record):
    """A conversation that awaits an answer."""

    prompt: tuple[Message, ...]  # ends with the user
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._check_common(self.group, self.meta)
        object.__setattr__(self, "prompt", _check_turns(self.prompt, "prompt", last="user"))


@dataclass(frozen=True)
class Document(_Record):
    """Plain text, as in pretraining."""

    text: str
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._check_common(self.group, self.meta)
        check_text(self.text, "text")


Record = Demonstration | Comparison | Prompt | Document
R = TypeVar("R", bound=Record)

KIND_NAMES: dict[type, str] = {
    Demonstration: "demonstrations",
    Comparison: "comparisons",
    Prompt: "prompts",
    Document: "documents",
}


def prompt_messages(record: Demonstration | Comparison | Prompt) -> tuple[Message, ...]:
    """The messages before the answer; for a demonstration, all but its last."""
    return record.messages[:-1] if isinstance(record, Demonstration) else record.prompt


def normalise(text: str) -> str:
    """The text in the form that is compared: Unicode NFKC, with case and runs of white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_text(record: Record) -> str:
    """The normalised prompt as one string, equal for rows with the same prompt; for a document, its normalised text."""
    if isinstance(record, Document):
        return normalise(record.text)
    return "\n".join(f"{m.role}: {normalise(m.content)}" for m in prompt_messages(record))


def to_dict(record: Record) -> dict[str, Any]:
    """The record as plain JSON values, without empty optional fields."""
    out: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if value is None or (f.name == "meta" and not value):
            continue
        if f.name in ("messages", "prompt"):
            value = [{"role": m.role, "content": m.content} for m in value]
        out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def from_dict(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that `to_dict` wrote. Raises DataError for unknown or missing keys and for invalid values."""
    known = [f.name for f in fields(kind)]
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in row:
        if key not in known:
            hint = did_you_mean(key, known)
            raise DataError(f"unknown key '{key}' for {KIND_NAMES[kind]}.{hint} Known: {', '.join(known)}", field=key)
    for key in required:
        if key not in row:
            raise DataError(f"key '{key}' is missing; the row has {', '.join(row) or 'no keys'}", field=key)
    values = {key: value for key, value in row.items() if value is not None or key in required}
    for key in ("messages", "prompt"):
        if key in values:
            values[key] = parse_messages(values[key], key)
    for key in ("responses", "ranks"):
        if key in values:
            values[key] = tuple(check_list(values[key], key))
    return kind(**values)


def check_list(value: object, name: str) -> list[Any]:
    """Return `value` if it is a list. Raises DataError naming field `name`."""
    if not isinstance(value, list):
        raise DataError(f"'{name}' must be a list, found {describe(value)}", field=name)
    return value


def parse_messages(value: object, name: str) -> tuple[Message, ...]:
    """Messages from [{"role": .., "content": ..}, ..]. Raises DataError naming field `name` and the position.

    Other keys of a message must be empty: a Message cannot store tool calls and the like."""
    messages = []
    for i, item in enumerate(check_list(value, name)):
        if not isinstance(item, dict):
            raise DataError(f"'{name}[{i}]' must be an object, found {describe(item)}", field=name)
        for key in ("role", "content"):
            if key not in item:
                raise DataError(f"'{name}[{i}]' has no '{key}', only {', '.join(item) or 'nothing'}", field=name)
        extra = [key for key, content in item.items() if key not in ("role", "content") and content]
        if extra:
            raise DataError(
                f"'{name}[{i}]' also has '{extra[0]}', which a message cannot contain; move it to another column",
                field=name,
            )
        try:
            messages.append(Message(item["role"], item["content"]))
        except DataError as error:
            reason = f"a message of '{name}': {error.reason}"
            raise DataError(f"'{name}[{i}]': {error}", field=f"{name}[{i}].{error.field}", reason=reason) from None
    return tuple(messages)
