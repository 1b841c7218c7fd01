"""Reads YAML strictly: no setting twice, no tags, bounded size, and plain values stay text until their type is known.

YAML 1.1 would read 010 as 8, 12:30 as 750 and `no` as false. Here a value in a file means the same as on the command
line, since the type of the setting decides how its text is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from stages.errors import ConfigError

LARGEST_FILE = 1 << 20  # bytes
DEEPEST = 20  # levels of nesting; recipes have at most 5
MOST_VALUES = 50_000  # after aliases are expanded
NULLS = ("", "~", "null", "Null", "NULL")
PLAIN_TAG = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|timestamp|value|merge|seq|map)")
MERGE = "tag:yaml.org,2002:merge"


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: text, None, lists and mappings. Raises FileNotFoundError, or ConfigError in one line
    that names file and line."""
    try:
        with path.open("rb") as file:
            contents = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(contents) > LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {LARGEST_FILE:,} bytes, so it is not a recipe; check the path")
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = contents[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    rows = read_text(text, str(path))
    if not isinstance(rows, dict):
        raise ConfigError(f"{path} is not a mapping of settings; begin with 'name: my_recipe'")
    return rows


def read_text(text: str, place: str) -> Any:
    """The value that a YAML text describes; `place` is the file or the option, for errors."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{place} is nested more than {DEEPEST} levels deep; a recipe needs 5") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        raise ConfigError(f"{at} cannot be read as YAML: {_reason(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{place}:{line} has a control character (U+{error.character:04X}); remove it") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{place} cannot be read as YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _Reader(place).value(node, 1, "")


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(filter(None, (error.context, error.problem)))
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    return " ".join(problem.split())


class _Reader:
    """Turns the nodes of one YAML text into values, and counts them."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._count = 0

    def value(self, node: yaml.Node, depth: int, key: str) -> Any:
        self._count += 1
        line = node.start_mark.line + 1
        if depth > DEEPEST:
            raise ConfigError(f"{self._place}:{line}: nested more than {DEEPEST} levels deep; a recipe needs 5")
        if self._count > MOST_VALUES:
            raise ConfigError(f"{self._place} has more than {MOST_VALUES:,} values once its aliases are filled in")
        if not PLAIN_TAG.fullmatch(node.tag):
            raise ConfigError(f"{self._place}:{line}: the tag {node.tag} is not allowed in a recipe; remove it")
        if isinstance(node, yaml.ScalarNode):
            return None if node.style is None and node.value in NULLS else str(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1, key) for item in node.value]
        return self._mapping(node, depth, key)

    def _mapping(self, node: yaml.Node, depth: int, section: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if name_node.tag == MERGE:
                given = self.value(value_node, depth + 1, section)
                for each in given if isinstance(given, list) else [given]:
                    if not isinstance(each, dict):
                        raise ConfigError(f"{self._place}:{line}: '<<' takes a mapping, or a list of mappings")
                    merged = {**each, **merged}
                continue
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError(f"{self._place}:{line}: a list or mapping cannot be the name of a setting")
            name = str(name_node.value)
            if name in lines:
                where = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                raise ConfigError(
                    f"{self._place}: '{f'{section}.{name}'.lstrip('.')}' is given twice ({where}); remove one of them"
                )
            lines[name] = line
            own[name] = self.value(value_node, depth + 1, f"{section}.{name}".lstrip("."))
        return {**merged, **own}
