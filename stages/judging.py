"""Code that a recipe names as "module:function"; labelers and judges are called with (meta, response, finished)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from policy.errors import raised
from stages.errors import ConfigError

SHOWN = 60  # characters of an answer in an error
# meta of the prompt, text of the response, whether it ended by itself -> "gold" and any parts of it
Judge = Callable[[Mapping[str, Any], str, bool], dict[str, float]]


def load_judge(path: str, key: str) -> Judge:
    """The judge behind "module:function"; errors as `load_function`. Called on an answer that it cannot judge it raises
    ConfigError, too."""
    function = load_function(path, key)

    @wraps(function)
    def judge(meta: Mapping[str, Any], response: str, finished: bool) -> dict[str, float]:
        try:
            grades: dict[str, float] = function(meta, response, finished)
        except Exception as error:
            raise ConfigError(
                f"{key}: '{path}' raised {raised(error)} on the answer {response[:SHOWN]!r}; name prompts whose "
                "columns it knows, or let it judge every answer"
            ) from error
        return grades

    return judge


def gold_score(grades: Any, path: str) -> float:
    """What orders answers. Raises ConfigError where the judge `path` gave none."""
    if not isinstance(grades, Mapping) or "gold" not in grades:
        raise ConfigError(f"'{path}' gave {str(grades)[:SHOWN]} and no 'gold', which orders answers; let it give one")
    return float(grades["gold"])


def load_function(path: str, key: str) -> Callable[..., Any]:
    """The function behind "module:function". Raises ConfigError naming the recipe's key."""
    module_name, separator, function_name = path.partition(":")
    if not (module_name and separator):
        raise ConfigError(f"{key} is '{path}'; it must be 'module:function'")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot find '{path}' ({error}); the module must be importable from here") from error
    if not callable(found):
        raise ConfigError(f"{key}: '{path}' is no function")
    function: Callable[..., Any] = found
    return function
