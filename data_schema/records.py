"""The records that flow through the pipeline: demonstrations, comparisons, prompts and documents.

A record is validated when it is constructed, so code that receives one need not check it again.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, cast

from data_schema.errors import DataError, did_you_mean
from data_schema.messages import ROLES as ROLES
from data_schema.messages import Message as Message
from data_schema.messages import check_learned
from data_schema.messages import check_list as check_list
from data_schema.messages import check_text as check_text
from data_schema.messages import describe as describe
from data_schema.messages import parse_messages as parse_messages


def _check_turns(messages: Sequence[object], name: str, last: str) -> tuple[Message, ...]:
    """Check for an optional system message, then user and assistant alternating, user first and `last` at the end."""
    turns = tuple(messages)
    roles = [m.role for m in turns if isinstance(m, Message)]
    if len(roles) != len(turns):
        i, message = next((i, m) for i, m in enumerate(turns) if not isinstance(m, Message))
        raise DataError(f"'{name}[{i}]' must be a message, found {describe(message)}", field=name)
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken[::2].count("user") + spoken[1::2].count("assistant") != len(spoken):
        raise DataError(
            f"'{name}' must alternate user and assistant after an optional system message, found {' '.join(roles)}",
            field=name,
        )
    if not spoken or spoken[-1] != last:
        found = roles[-1] if roles else "no messages"
        raise DataError(f"'{name}' must end with the {last}, found {found}", field=name)
    return cast(tuple[Message, ...], turns)


@dataclass(frozen=True)
class _Record:
    id: str
    source: str  # where the row came from, as the recipe names it

    def _check_common(self, group: object, meta: object) -> None:
        check_text(self.id, "id")
        check_text(self.source, "source")
        if group is not None:
            check_text(group, "group")
        if not isinstance(meta, dict) or (meta and not all(isinstance(key, str) for key in meta)):
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
FIELDS = {kind: tuple(f.name for f in fields(kind)) for kind in KIND_NAMES}
REQUIRED = {
    kind: tuple(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    for kind in KIND_NAMES
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
    for name in FIELDS[type(record)]:
        value = getattr(record, name)
        if value is None or (name == "meta" and not value):
            continue
        if name in ("messages", "prompt"):
            value = [
                {"role": m.role, "content": m.content}
                if m.learned
                else {"role": m.role, "content": m.content, "learned": False}
                for m in value
            ]
        out[name] = list(value) if isinstance(value, tuple) else value
    return out


def from_dict(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that `to_dict` wrote. Raises DataError for unknown or missing keys and for invalid values."""
    known, required = FIELDS[kind], REQUIRED[kind]
    for key in row:
        if key not in known:
            hint = did_you_mean(key, known)
            raise DataError(f"unknown key '{key}' for {KIND_NAMES[kind]}.{hint} Known: {', '.join(known)}", field=key)
    for key in required:
        if key not in row:
            raise DataError(f"key '{key}' is missing; the row has {', '.join(row) or 'no keys'}", field=key)
    values = {key: value for key, value in row.items() if value is not None or key in required}
    if kind is Demonstration:
        check_learned(values.get("messages"), "messages")
    for key in ("messages", "prompt"):
        if key in values:
            values[key] = parse_messages(values[key], key)
    for key in ("responses", "ranks"):
        if key in values:
            values[key] = tuple(check_list(values[key], key))
    return kind(**values)
