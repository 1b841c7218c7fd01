"""Builds a `Recipe` from a YAML file and dotted overrides (jsonargparse). Mistakes are one line that names the key.

`extends: other.yaml` (relative to the file) starts from another recipe and changes only the settings given here. A data
source may be a bare path, and a single source may replace a list of one. `ppo.preset` has the lowest priority.
"""

from __future__ import annotations

import difflib
import os
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from data_schema import DataError
from pipeline.configs import Recipe
from stages.errors import ConfigError
from stages.ppo.presets import preset_settings
from stages.settings import plain

SOURCE_LISTS = ("data", "prompts", "demonstrations", "pretraining_data")  # settings that are lists of data sources
OPTIONS = ("--config", "--data", "--root", "--force", "--dry-run", "--print_config", "--from", "--only", "--help")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def load_recipe(path: str | Path, overrides: Sequence[str] = (), copies: Mapping[str, str] | None = None) -> Recipe:
    """The recipe at `path` with overrides such as ["--ppo.kl_coef", "0.05", "--seed=1"]. `copies` maps data sets to
    files that are read in their place. Raises ConfigError in one line."""
    try:
        rows = _normalise(_merge(read_yaml(Path(path)), _read_overrides(overrides)))
        _check_keys(rows, Recipe)
        if isinstance(rows.get("ppo"), dict):
            rows["ppo"] = _merge(preset_settings(rows["ppo"]), rows["ppo"])
        for name, copy in (copies or {}).items():
            if not _replace_path(rows, name, copy):
                raise ConfigError(f"--data {name}={copy}: the recipe has no data source '{name}'; check the name")
        return _build(rows)
    except (ConfigError, DataError) as error:
        place = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{place}{error}") from None


def read_yaml(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file as a plain mapping, merged into the recipe it extends. `below`: the files that extend this one."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else f"there are: {', '.join(there) or 'no recipes'}"
        raise ConfigError(f"no recipe {path}; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, dict):
        raise ConfigError(f"{path} is not a mapping of settings; begin with 'name: my_recipe'")
    base = rows.pop("extends", None)
    if base is None:
        return rows
    chain = (*below, path.resolve())
    if (path.parent / str(base)).resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it too; remove one 'extends'")
    return _merge(read_yaml(path.parent / str(base), chain), rows)


def as_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)


def _build(rows: dict[str, Any]) -> Recipe:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe)
    try:
        settings = parser.instantiate(parser.parse_args([f"--config={yaml.safe_dump(rows)}"]))
    except (ArgumentError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError | DataError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ConfigError(_one_line(str(error))) from None
    values = dict(vars(settings))
    values.pop("config", None)
    return Recipe(**values)


def _one_line(message: str) -> str:
    """What jsonargparse says of a missing setting or a value of the wrong type, as "KEY is VALUE; it must be ..."."""
    line = " ".join(message.split())
    keys = ".".join(re.findall(r'Parser key "([\w.]+)"', line))
    if missing := re.search(r"arguments are required: ([\w., ]+?)(?= - |$)", line):
        return f"{'.'.join(filter(None, (keys, missing[1])))} is required; add it"
    value = re.search(r"(?:Got|Given) value: (.*?)(?= - Expected| Given value|$)", line)
    kind: Any = Recipe
    for name in keys.split("."):
        section = dataclass_in(kind)
        kind = get_type_hints(section).get(name) if section else None
    return f"{keys} is {value[1]}; it must be {_described(kind)}" if value and kind else line


def _described(kind: Any) -> str:
    """A type in words, for messages."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if section := dataclass_in(kind):
        names = [field.name for field in fields(section)]
        return f"a section with settings such as {' and '.join(names[:2])}"
    if get_origin(kind) in (list, tuple, dict):
        return "a mapping" if get_origin(kind) is dict else "a list"
    if kind in KINDS:
        return KINDS[kind]
    return " or ".join("null" if each is type(None) else _described(each) for each in get_args(kind)) or str(kind)


def dataclass_in(kind: Any) -> Any:
    """The dataclass that a setting is made of, if it is one or may be one; not those in lists."""
    kinds = () if get_origin(kind) is list else (kind, *get_args(kind))
    return next((each for each in kinds if is_dataclass(each)), None)


def _may_be_section(value: Any) -> bool:
    """Whether it is a mapping, null, or the path of a file with the section, which jsonargparse reads."""
    return value in (None, "null") or isinstance(value, dict) or (isinstance(value, str) and os.path.isfile(value))


def _check_keys(rows: dict[str, Any], kind: Any, section: str = "") -> None:
    """Refuse settings that `kind` does not have, at any depth; jsonargparse ignores some of them."""
    hints = get_type_hints(kind)
    for key, value in rows.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            owner = f"'{section}' has" if section else "a recipe has"
            raise ConfigError(f"{owner} no setting '{key}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        name = f"{section}.{key}".lstrip(".")
        if dataclass_in(hints[key]) and not _may_be_section(value):
            raise ConfigError(f"'{name}' is {value}; it must be {_described(hints[key])}")
        inner = [each for each in (hints[key], *get_args(hints[key])) if is_dataclass(each)]
        for part in value if isinstance(value, list) else [value]:
            if inner and isinstance(part, dict):
                _check_keys(part, inner[0], name)


def _read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--ppo.kl_coef", "0.05", "--seed=1"] as the mapping that a recipe file would contain."""
    rows: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        flag, given, value = waiting.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"'{flag}' is not an option; override settings like this: --ppo.kl_coef 0.05")
        if flag.removeprefix("--").split(".")[0] not in get_type_hints(Recipe):
            near = difflib.get_close_matches(
                flag.split(".")[0], [*OPTIONS, *(f"--{name}" for name in get_type_hints(Recipe))], n=1
            )
            hint = f"did you mean {near[0]}?" if near else "'triptych run --help' lists the options and settings"
            raise ConfigError(f"unknown option {flag}; {hint}")
        if not given:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{flag} has no value; write {flag} VALUE")
            value = waiting.pop(0)
        # Single values stay text until the setting's type is known: a name made of digits is not a number.
        setting: Any = _read_nested(flag, value) if value.lstrip().startswith(("[", "{")) else value
        for name in reversed(flag.removeprefix("--").split(".")):
            setting = {name: setting}
        rows = _merge(rows, setting)
    return rows


def _read_nested(flag: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} cannot be read as YAML: {' '.join(str(error).split())}") from None


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _normalise(rows: dict[str, Any]) -> dict[str, Any]:
    """Bare paths become sources, and a single source becomes a list of one."""
    result: dict[str, Any] = {}
    for key, value in rows.items():
        if isinstance(value, dict) and key not in SOURCE_LISTS:
            result[key] = _normalise(value)
        elif key in SOURCE_LISTS and value is not None:
            entries = value if isinstance(value, list) else [value]
            result[key] = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
        else:
            result[key] = value
    return result


def _replace_path(rows: Any, name: str, copy: str) -> int:
    """Replace every source path that is `name`, or a folder of it, by `copy`; returns the number of replacements."""
    if not isinstance(rows, dict | list):
        return 0
    found = 0
    for key, value in rows.items() if isinstance(rows, dict) else enumerate(rows):
        # Texts in lists are those of held_out_tasks.sources.
        is_path = isinstance(value, str) and (key == "path" or isinstance(rows, list))
        if is_path and (value == name or value.startswith(f"{name}:")):
            rows[key] = copy
            found += 1
        else:
            found += _replace_path(value, name, copy)
    return found
