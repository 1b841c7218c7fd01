"""The settings of a recipe as help text: name, choices, default, and the docstring under each field of the configs."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from data_schema import Source
from pipeline.configs import Recipe
from pipeline.recipe import dataclass_in

COLUMN = 34  # where descriptions begin
METAVARS = {int: "N", float: "X", str: "TEXT", bool: "{true,false}"}
SHARED = ("tracking", "held_out_tasks")  # sections that every stage reads


def settings_help(stage: str | None = None) -> str:
    """Every setting of a recipe, or those of one stage and what all stages share."""
    general, sections = "", []
    hints, docs = get_type_hints(Recipe), _docs(Recipe)
    for field in fields(Recipe):
        section = dataclass_in(hints[field.name])
        if section is None:
            general += _option(field, hints[field.name], field.name, docs, _default(field))
        elif stage in (None, field.name) or field.name in SHARED:
            sections.append(_filled(f"{field.name}: {_about(section)}") + "".join(_options(section, field.name)))
    names = ", ".join(field.name for field in fields(Source))
    end = f"A data source is a path, or a mapping with the settings {names} (docs/data_formats.md)."
    return "\n".join(["Settings, written as --SECTION.SETTING VALUE:\n\n" + general, *sections, _filled(end)])


def _options(section: Any, prefix: str, defaults: Any = None) -> Iterator[str]:
    """The settings of a dataclass, nested ones after the setting that contains them; `defaults` is an instance whose
    values replace the class's own."""
    hints, docs = get_type_hints(section), _docs(section)
    for field in fields(section):
        name, inner = f"{prefix}.{field.name}", dataclass_in(hints[field.name])
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        yield _option(field, hints[field.name], name, docs, default)
        if inner is not None:
            yield from _options(inner, name, default if is_dataclass(default) else None)


def _option(field: Field[Any], kind: Any, name: str, docs: dict[str, str], default: Any) -> str:
    state = f"(default: {json.dumps(default)})" if _is_plain(default) else ""
    inner = dataclass_in(kind)
    about = docs.get(field.name) or (_about(inner) if inner else "")
    text = f"{about} {'(required)' if default is MISSING else state}"
    option = f"  --{name} {_metavar(kind)}".rstrip()
    lines = textwrap.wrap(text, _width() - COLUMN) or [""]
    if len(option) > COLUMN - 2:
        lines.insert(0, "")
    first, *rest = lines
    return f"{option:<{COLUMN}}{first}".rstrip() + "\n" + "".join(f"{'':<{COLUMN}}{line}\n" for line in rest)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_plain(default: Any) -> bool:
    """Whether the value says something by itself; the settings of a section have defaults of their own."""
    return default is not MISSING and not any(map(is_dataclass, default if isinstance(default, list) else [default]))


def _docs(section: Any) -> dict[str, str]:
    """Setting -> the docstring under it."""
    found = docstring_parser.parse_from_object(section).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in found}


def _about(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in (list, tuple):
        return "[...]"
    if dataclass_in(kind) is not None or get_origin(kind) is dict:
        return "{...}"
    return METAVARS.get(kind) or next(filter(None, map(_metavar, get_args(kind))), "")


def _width() -> int:
    return max(72, min(120, shutil.get_terminal_size((100, 24)).columns))


def _filled(text: str) -> str:
    return textwrap.fill(text, _width()) + "\n"
