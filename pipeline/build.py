"""Builds a dataclass of settings from plain values. A mistake is one line that names the setting by its full path.

Nothing is imported and no file is read: a text becomes a number, a path or a name only by the type of its setting.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from data_schema import DataError, Mixture
from data_schema.errors import printable
from pipeline.configs import Recipe
from pipeline.other_names import answer
from stages.errors import ConfigError

LARGEST = 10**15  # of whole numbers: sums of several still fit 64 bits
SHOWN = 60  # characters of a value in a message
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*(_\d+)*)")
NUMBER = re.compile(r"[-+]?((0|[1-9]\d*(_\d+)*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
INFINITE = re.compile(r"[-+]?\.?inf(inity)?|\.?nan", re.IGNORECASE)
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters but tab and newline


def build(kind: Any, rows: Mapping[str, Any], path: str = "") -> Any:
    """An instance of the dataclass `kind`. `path` is the setting that contains these, such as "ppo.optimizer".

    Raises ConfigError for an unknown, missing or wrong setting, and for one that the dataclass refuses."""
    hints = hints_of(kind)
    for key in rows:
        if key not in hints:
            raise ConfigError(unknown_setting(str(key), kind, path))
    values = {key: _convert(value, hints[key], _join(path, key), kind) for key, value in rows.items()}
    for field in fields(kind):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{_join(path, field.name)} is required; add it")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(_with_path(cut(str(error)), getattr(kind, "section", ""), path)) from None
    except DataError as error:
        raise ConfigError(_with_field(cut(str(error)), error.field, path)) from None


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Setting -> its type, of a dataclass."""
    return get_type_hints(kind)


def dataclass_in(kind: Any) -> Any:
    """The dataclass that a setting is made of, if it is one or may be one; not those in lists."""
    kinds = () if get_origin(kind) is list else (kind, *get_args(kind))
    return next((each for each in kinds if is_dataclass(each)), None)


def kind_at(kind: Any, path: str) -> Any:
    """The type of the setting at a dotted path below the dataclass `kind`; None if there is none."""
    for name in path.split("."):
        section = dataclass_in(kind)
        kind = hints_of(section).get(name) if section else None
    return kind


def holds_text(kind: Any) -> bool:
    """Whether a setting of this type takes text, so that [PAD] is not a list there."""
    return str in (kind, *_choices(kind))


def paths_of(kind: Any, path: str = "") -> Iterator[str]:
    """The full paths of all settings below a dataclass, sections included, without those of list entries."""
    for name, each in hints_of(kind).items():
        yield _join(path, name)
        if section := dataclass_in(each):
            yield from paths_of(section, _join(path, name))


def unknown_setting(key: str, kind: Any, path: str) -> str:
    """One line for a setting that the dataclass `kind` does not have, with what was probably meant."""
    owner = f"'{path}' has" if path else "a recipe has"
    return f"{owner} no setting '{shown(key)}'. {meant(key, kind, path)}".rstrip()


def meant(key: str, kind: Any, path: str) -> str:
    """What was probably meant by a setting `key` that `kind`, the section at `path`, does not have: a misspelt one,
    another library's name for one, or one of the same name in another section; "" if nothing is near."""
    hints = hints_of(kind)
    name = key.replace("-", "_").lower()
    if near := difflib.get_close_matches(name, hints, n=1, cutoff=0.85):
        return f"Did you mean '{near[0]}'?"
    if told := answer(name, path):
        return told
    below = [each for each in paths_of(kind, path) if each.rpartition(".")[2] == name]
    elsewhere = [each for each in paths_of(Recipe) if each.rpartition(".")[2] == name]
    found = below or elsewhere or difflib.get_close_matches(name, hints, n=1)
    return "Did you mean " + " or ".join(f"'{each}'" for each in found[:3]) + "?" if found else ""


def shown(value: Any) -> str:
    """A value in a message: in the recipe's words, without control characters, and not too long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")
    return f"{text[:SHOWN]}..." if len(text) > SHOWN else text or "empty"


def described(kind: Any) -> str:
    """A type in words, for messages."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        return f"a section with settings such as {' and '.join(names[:2])}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))} numbers"
    if get_origin(kind) in (list, dict):
        return "a mapping" if get_origin(kind) is dict else "a list"
    if kind in KINDS:
        return KINDS[kind]
    return " or ".join("null" if each is type(None) else described(each) for each in _choices(kind))


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def cut(message: str) -> str:
    """The message in one line, with long words cut, and without characters that a terminal obeys."""
    line = printable(message).replace("\n", "\\n")
    return re.sub(rf"\S{{{2 * SHOWN},}}", lambda word: f"{word[0][:SHOWN]}...", line)


def _with_path(message: str, section: str, path: str) -> str:
    """A dataclass names its settings as "optimizer.eps"; here it is known to be ppo.optimizer.eps."""
    named = section and message.startswith(f"{section}.")
    return f"{path}{message[len(section) :]}".lstrip(".") if named else message


def _with_field(message: str, field: str | None, path: str) -> str:
    """The same for the settings of `data_schema`, whose errors name a field: "limit must be", "mixture.cap must be"."""
    section = path.rpartition(".")[2]
    if message.startswith(f"{section}."):
        return f"{path}{message[len(section) :]}"
    if field and message.startswith(f"{field} "):
        return f"{path}.{message}"
    return message if message.startswith((f"{path}.", f"{path}:")) else f"{path}: {message}"


def _convert(value: Any, kind: Any, path: str, owner: Any) -> Any:
    """The value as the type of its setting. Raises ConfigError if it cannot be."""
    choices = _choices(kind)
    if value is None and type(None) in choices:
        return None
    one = next((each for each in choices if each is not type(None)), kind)
    return _convert_one(value, one, path, owner, described(kind))


def _convert_one(value: Any, kind: Any, path: str, owner: Any, wanted: str) -> Any:
    if is_dataclass(kind):
        if isinstance(value, Mapping):
            return build(kind, value, path)
    elif get_origin(kind) is list:
        if isinstance(value, list | tuple):
            (each,) = get_args(kind)
            several = len(value) > 1
            return [_convert(item, each, f"{path}[{i}]" if several else path, owner) for i, item in enumerate(value)]
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and len(value) == len(get_args(kind)):
            pairs = zip(value, get_args(kind), strict=True)
            return tuple(_convert(item, each, path, owner) for item, each in pairs)
    elif get_origin(kind) is dict:
        if isinstance(value, Mapping):
            _, each = get_args(kind)
            return {str(key): _convert(item, each, _join(path, str(key)), owner) for key, item in value.items()}
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif isinstance(value, str | int | float | bool):
        return _scalar(value, kind, path, wanted, may_be_infinite=owner is Mixture)
    quotes = ", in quotes" if kind is str and value is not None else ""  # [PAD] is a list in YAML
    if quotes and isinstance(value, list) and len(value) > 1:
        quotes += f": '{', '.join(map(str, value))}'"
    raise ConfigError(f"{path} is {shown(value)}; it must be {wanted}{quotes}")


def _scalar(value: Any, kind: Any, path: str, wanted: str, may_be_infinite: bool) -> Any:
    text = str(value).strip() if kind is not str else str(value)
    if kind is str:
        if HIDDEN.search(text):
            raise ConfigError(f"{path} is {shown(value)}, which has control characters; remove them")
        return text if not isinstance(value, bool) else text.lower()
    if kind is bool and text.lower() in WORDS:
        return WORDS[text.lower()]
    if kind is int and not isinstance(value, bool) and WHOLE.fullmatch(text):
        if len(text) > 20 or abs(int(text)) > LARGEST:
            raise ConfigError(f"{path} is {shown(value)}; it must be {wanted}, at most {LARGEST:,}")
        return int(text)
    if kind is float and not isinstance(value, bool):
        if NUMBER.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            raise ConfigError(f"{path} is {shown(value)}, which is too large; it must be {wanted}")
        if INFINITE.fullmatch(text):
            if may_be_infinite and "nan" not in text.lower():
                return float(text.replace(".", ""))
            raise ConfigError(f"{path} is {shown(value)}; it must be {wanted} and finite")
    advice = ""
    if kind in (int, float) and re.fullmatch(r"[-+]?0[\d_]+(\.\d*)?", text):
        advice = ", written without a leading zero"
    elif kind in (int, float) and re.fullmatch(r"[-+]?(0[xob]\w+|\d+(:\d+)+)", text):
        advice = ", written in decimal digits"
    raise ConfigError(f"{path} is {shown(value)}; it must be {wanted}{advice}")
