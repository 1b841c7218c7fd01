"""Reads a `Recipe` from a YAML file and dotted overrides. Mistakes are one line that names the setting.

`extends: other.yaml` (relative to the file) starts from another recipe and changes only the settings given here. A data
source may be a bare path, and a single source may replace a list of one. `ppo.preset` has the lowest priority. Relative
paths start at the current folder, then at the folder of the recipe that names them (pipeline/locations.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

from data_schema import DataError
from data_schema.errors import printable
from pipeline.build import build, dataclass_in, hints_of, holds_text, kind_at, meant, shown, unknown_setting
from pipeline.configs import Recipe
from pipeline.locations import find_paths
from pipeline.strict_yaml import NULLS, read_file, read_text
from stages.errors import ConfigError
from stages.ppo.presets import preset_settings
from stages.settings import plain

SOURCE_LISTS = ("data", "prompts", "demonstrations", "pretraining_data", "text")  # settings that list data sources
OPTIONS = ("--config", "--data", "--root", "--force", "--dry-run", "--print_config", "--from", "--only", "--help")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), copies: Mapping[str, str] | None = None) -> Recipe:
    """The recipe at `path` with overrides such as ["--ppo.kl_coef", "0.05", "--seed=1"]. `copies` maps data sets to
    files that are read in their place. Raises ConfigError in one line."""
    try:
        given = find_paths(_normalise(read_overrides(overrides)), Path(path).parent, copies or {})
        rows = _merge(read_yaml(Path(path), copies=copies or {}), given)
        if isinstance(rows.get("ppo"), dict):
            rows["ppo"] = _merge(preset_settings(rows["ppo"]), rows["ppo"])
        for name, copy in (copies or {}).items():
            if not _replace_path(rows, name, copy):
                raise ConfigError(f"--data {name}={copy}: the recipe has no data source '{name}'; check the name")
        recipe: Recipe = build(Recipe, rows)
        return recipe
    except (ConfigError, DataError) as error:
        place = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{place}{error}") from None


def read_yaml(path: Path, below: tuple[Path, ...] = (), copies: Collection[str] = ()) -> dict[str, Any]:
    """A recipe file as a plain mapping, merged into the recipe it extends. `below`: the files that extend this one;
    `copies`: data sets that are read from elsewhere, so that no file is looked up for them."""
    try:
        rows = read_file(path)
    except FileNotFoundError:
        raise ConfigError(f"no recipe {path}; {_other_recipes(path)}") from None
    base = rows.pop("extends", None)
    rows = find_paths(_normalise(rows), path.parent, copies)
    if base is None:
        return rows
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends is {shown(base)}; it must be the path of one other recipe")
    chain = (*below, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it too; remove one 'extends'")
    return _merge(read_yaml(path.parent / base, chain, copies), rows)


def _other_recipes(path: Path) -> str:
    """What may have been meant by a recipe that is not there: one of its folder, or of the folder `recipes` in it."""
    there = [found for folder in (path.parent, path.parent / "recipes") for found in sorted(folder.glob("*.y*ml"))]
    near = difflib.get_close_matches(path.stem, [found.stem for found in there], n=1)
    if near:
        return f"did you mean {next(found for found in there if found.stem == near[0])}?"
    names = [str(found.relative_to(path.parent)) for found in there]
    return f"there are: {', '.join(names)}" if names else "there are none here; check the path"


def as_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in."""
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    # Without allow_unicode every character beyond ASCII is an escape, those that a terminal would obey among them.
    return text if printable(text) == text else yaml.safe_dump(plain(recipe), sort_keys=False)


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--ppo.kl_coef", "0.05", "--seed=1"] as the mapping that a recipe file would contain. Raises ConfigError for a
    word that is no option, and for a setting that is given twice."""
    rows: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        flag, given, value = waiting.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"'{shown(flag)}' is not an option; override settings like this: --ppo.kl_coef 0.05")
        name = flag.removeprefix("--")
        kind = _kind_of_option(name)
        if not given:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{flag} has no value; write {flag} VALUE")
            value = waiting.pop(0)
        setting = _read_value(flag, value, kind)
        for part in reversed(name.split(".")):
            setting = {part: setting}
        if twice := next(_both(rows, setting), None):
            raise ConfigError(f"--{twice} is given twice on the command line; remove one of them")
        rows = _merge(rows, setting)
    return rows


def _kind_of_option(name: str) -> Any:
    """The type of the setting that an option names. Raises ConfigError, with a near one, if there is none."""
    first, _, below = name.partition(".")
    if first not in hints_of(Recipe):
        near = difflib.get_close_matches(f"--{first}", [*OPTIONS, *(f"--{each}" for each in hints_of(Recipe))], n=1)
        hint = "" if below else meant(first, Recipe, "")
        hint = f"did you mean {near[0]}?" if near else hint or "'triptych run --help' lists the options and settings"
        raise ConfigError(f"unknown option --{shown(name)}; {hint}")
    section, path = Recipe, ""
    for part in name.split("."):
        if not is_dataclass(section):
            break
        if part not in hints_of(section):
            raise ConfigError(unknown_setting(part, section, path))
        path = f"{path}.{part}".lstrip(".")
        section = dataclass_in(hints_of(section)[part])
    return kind_at(Recipe, name)


def _read_value(flag: str, value: str, kind: Any) -> Any:
    """An option's value: text, null, or a list or mapping as in YAML where the setting is one."""
    if value in NULLS and value:
        return None
    if not holds_text(kind) and value.lstrip().startswith(("[", "{")):
        return read_text(value, flag)
    return value


def _both(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The settings that both mappings give."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        yield path
        return
    for key in one.keys() & other.keys():
        yield from _both(one[key], other[key], f"{path}.{key}".lstrip("."))


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
        if key == "meta":  # of held_out_tasks: the names below are those of the user's columns
            result[key] = value
        elif isinstance(value, dict) and key not in SOURCE_LISTS:
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
