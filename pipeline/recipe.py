"""A recipe file and dotted overrides to a `Recipe`: YAML, read by jsonargparse; a mistake is one line naming the key.

`extends: other.yaml` (beside the file) takes that recipe and changes only what is said here. A data source may be given
as a bare path; where a list of them is wanted, one will do. `ppo.preset` lies below all of them.
"""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from data_schema import DataError
from pipeline.configs import Recipe
from stages.errors import ConfigError
from stages.ppo.presets import preset_settings

SOURCE_LISTS = ("data", "prompts", "demonstrations", "pretraining_data")  # keys that hold a list of data sources


def load_recipe(path: str | Path, overrides: Sequence[str] = (), copies: Mapping[str, str] | None = None) -> Recipe:
    """The recipe at `path` with overrides such as ["--ppo.kl_coef", "0.05", "--seed=1"]; `copies` are files to read in
    place of data sets (name -> file). Raises ConfigError in one line.
    """
    try:
        rows = _normalise(_merge(read_yaml(Path(path)), _read_overrides(overrides)))
        _check_keys(rows, Recipe)
        if isinstance(rows.get("ppo"), dict):
            rows["ppo"] = _merge(preset_settings(rows["ppo"]), rows["ppo"])
        for name, copy in (copies or {}).items():
            if not _replace_path(rows, name, copy):
                raise ConfigError(f"--data {name}={copy}: no source of the recipe is '{name}'; check the name")
        return _build(rows)
    except (ConfigError, DataError) as error:
        place = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{place}{error}") from None


def read_yaml(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file as a plain mapping, with what it extends merged in; `below` are the files that extend it."""
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
        raise ConfigError(f"{path} is no mapping of settings; begin with 'name: my_recipe'")
    base = rows.pop("extends", None)
    if base is None:
        return rows
    chain = (*below, path.resolve())
    if (path.parent / str(base)).resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it in turn; take out one 'extends'")
    return _merge(read_yaml(path.parent / str(base), chain), rows)


def settings_help() -> str:
    """Every setting with its default, those of sections that a recipe may leave out too."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="triptych run RECIPE", exit_on_error=False)
    parser.add_argument("--config", action="config", help="A recipe file.")
    for name, kind in get_type_hints(Recipe).items():
        section = next((each for each in (kind, *get_args(kind)) if is_dataclass(each)), None)
        if section is None:
            parser.add_argument(f"--{name}", type=kind, default=getattr(Recipe, name, None))
        else:
            parser.add_class_arguments(section, name)
    return parser.format_help()


def recipe_parser(exit_on_error: bool = False) -> ArgumentParser:
    """The parser behind `load_recipe`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="triptych run RECIPE", exit_on_error=exit_on_error)
    parser.add_argument("--config", action="config", help="A recipe file.")
    parser.add_class_arguments(Recipe)
    return parser


def as_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in."""
    from stages.settings import plain

    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)


def _build(rows: dict[str, Any]) -> Recipe:
    parser = recipe_parser()
    try:
        settings = parser.instantiate(parser.parse_args([f"--config={yaml.safe_dump(rows)}"]))
    except (ArgumentError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError | DataError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ConfigError(_one_line(str(error))) from None
    fields = dict(vars(settings))
    fields.pop("config", None)
    return Recipe(**fields)


def _one_line(message: str) -> str:
    """jsonargparse's message about a missing setting or one of the wrong type, without its nesting."""
    line = " ".join(message.split())
    keys = ".".join(re.findall(r'Parser key "([\w.]+)"', line))
    if missing := re.search(r"arguments are required: ([\w., ]+?)(?= - |$)", line):
        return f"{'.'.join(filter(None, (keys, missing[1])))} is required; add it"
    wanted = re.search(r"Expected an? (.*?)(?:\. Got value| - Expected| Given value)", line)
    value = re.search(r"(?:Got|Given) value: (.*?)(?= - Expected| Given value|$)", line)
    if not (keys and wanted and value):
        return line
    kind = re.sub(r"<class '([^']+)'>|typing\.", r"\1", wanted[1])
    return f"{keys} is {value[1]}; it must be {kind}"


def _check_keys(rows: dict[str, Any], kind: Any, section: str = "") -> None:
    """Refuse settings that `kind` does not have, at any depth: some, jsonargparse would pass over without a word."""
    hints = get_type_hints(kind)
    for key, value in rows.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            owner = f"'{section}' has" if section else "a recipe has"
            raise ConfigError(f"{owner} no setting '{key}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        inner = [each for each in (hints[key], *get_args(hints[key])) if is_dataclass(each)]
        for part in value if isinstance(value, list) else [value]:
            if inner and isinstance(part, dict):
                _check_keys(part, inner[0], f"{section}.{key}".lstrip("."))


def _read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--ppo.kl_coef", "0.05", "--seed=1"] as the mapping a recipe file would hold."""
    rows: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        flag, given, value = waiting.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"'{flag}' is no option; settings are overridden like --ppo.kl_coef 0.05")
        if not given:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{flag} has no value; write {flag} VALUE")
            value = waiting.pop(0)
        # Single values stay text, which is read by the setting's type: a name of digits is no number.
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
    """Bare paths as sources, one source as a list."""
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
    """Put `copy` for every source path that is `name` or a folder of it; returns how many there were."""
    if not isinstance(rows, dict | list):
        return 0
    found = 0
    for key, value in rows.items() if isinstance(rows, dict) else enumerate(rows):
        # A text in a list is one of held_out_tasks.sources.
        is_path = isinstance(value, str) and (key == "path" or isinstance(rows, list))
        if is_path and (value == name or value.startswith(f"{name}:")):
            rows[key] = copy
            found += 1
        else:
            found += _replace_path(value, name, copy)
    return found
