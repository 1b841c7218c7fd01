"""Loads functions that a recipe names as "module:function"; labelers and judges get (meta, response, finished)."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from data_schema import DataError
from data_schema.errors import did_you_mean
from data_schema.locations import module_file
from policy.errors import raised
from stages.errors import ConfigError

SHOWN = 60  # characters of an answer shown in an error
# Last word of a setting -> what its function is called with.
ARGUMENTS = {name: ("meta", "answer", "ended") for name in ("judge", "--judge", "labeler", "monitor")} | {
    "function": ("prompts", "answers", "seed")
}
# (meta of the prompt, text of the response, whether it ended with EOS) -> "gold" and any further scores
Judge = Callable[[Mapping[str, Any], str, bool], dict[str, float]]


def load_judge(path: str, key: str) -> Judge:
    """Load the judge named "module:function"; errors as `load_function`. The returned function raises ConfigError if
    the judge fails on an answer."""
    function = load_function(path, key)

    @wraps(function)
    def judge(meta: Mapping[str, Any], response: str, finished: bool) -> dict[str, float]:
        try:
            grades: Any = function(meta, response, finished)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{key}: '{path}' raised {raised(error)} on the answer {response[:SHOWN]!r}; give prompts with the "
                "columns it needs, or let it handle every answer"
            ) from error
        return checked_grades(grades, path, key)

    return judge


def checked_grades(grades: Any, path: str, key: str) -> dict[str, float]:
    """A judge's grades as numbers. Raises ConfigError if it returned anything but names with finite numbers."""
    if not isinstance(grades, Mapping):
        raise ConfigError(f"{key}: '{path}' returned {_named(grades)}; let it return a dict of scores, such as 'gold'")
    found: dict[str, float] = {}
    for name, value in grades.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError):
            found[str(name)] = math.nan
        if not math.isfinite(found[str(name)]):
            raise ConfigError(f"{key}: '{path}' returned a '{name}' that is not a finite number; let it return one")
    return found


def gold_score(grades: Any, path: str) -> float:
    """The score that ranks answers. Raises ConfigError if the judge `path` returned none."""
    if not isinstance(grades, Mapping) or "gold" not in grades:
        raise ConfigError(f"'{path}' returned {_named(grades)}, which has no 'gold' to rank answers by; add it")
    return float(grades["gold"])


def _named(grades: Any) -> str:
    """What a judge returned, in words."""
    if isinstance(grades, Mapping):
        return f"scores named {', '.join(map(str, grades))}" if grades else "a dict without scores"
    if grades is None:
        return "nothing"
    return f"the number {grades:g}" if isinstance(grades, int | float) else "something that is not a dict"


def load_function(path: str, key: str) -> Callable[..., Any]:
    """Import the function named "module:function". Raises ConfigError, which names the recipe's setting `key`."""
    module_name, function_name = split_path(path, key)
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot find '{path}' ({error}); the module must be importable from here") from error
    except Exception as error:
        raise ConfigError(
            f"{key}: importing '{module_name}' raised {raised(error)}; fix the module, so that it can be imported"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}: '{path}' is not a function; name one")
    function: Callable[..., Any] = found
    check_call(function, path, key)
    return function


def check_call(function: Callable[..., Any], path: str, key: str) -> None:
    """Raise ConfigError if a function cannot be called as the setting `key` calls its function."""
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{key}: '{path}' is an async function; write one with 'def' that returns its result")
    given = ARGUMENTS.get(key.rpartition(".")[2])
    try:
        if given is not None:
            inspect.signature(function).bind(*given)
    except TypeError:
        raise ConfigError(
            f"{key}: '{path}' cannot be called with {len(given or ())} arguments; write it as "
            f"'def {path.rpartition(':')[2]}({', '.join(given or ())})'"
        ) from None
    except ValueError:  # some functions written in C do not say what they take
        return


def check_function(path: str, key: str) -> None:
    """Raise ConfigError if the module of "module:function" has no file, or its file does not define the function.
    Nothing is imported: what a recipe names runs only when the recipe runs."""
    module_name, function_name = split_path(path, key)
    try:
        defined = names_defined(module_file(module_name))
    except DataError as error:
        raise ConfigError(f"{key}: cannot find '{path}' ({error})") from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise ConfigError(f"{key}: '{module_name}' is not valid Python{where}; fix the module") from None
    if defined is not None and function_name not in defined:
        raise ConfigError(
            f"{key}: cannot find '{path}': the module does not define '{function_name}'."
            f"{did_you_mean(function_name, defined)} Check the name"
        )


def split_path(path: str, key: str) -> tuple[str, str]:
    """("module", "function") of "module:function". Raises ConfigError if it is not of this form."""
    module, _, function = path.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{key} is '{path[:SHOWN]}'; it must be 'module:function'")
    return module, function


def names_defined(file: Path) -> set[str] | None:
    """The names that a module defines or imports at its top level, from its source; None if only running it can tell,
    because of `from x import *` or a module's __getattr__."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(file.read_bytes()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            waiting += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names
