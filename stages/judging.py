"""Loads functions that a recipe names as "module:function"; labelers and judges get (meta, response, finished)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from policy.errors import raised
from stages.errors import ConfigError

SHOWN = 60  # characters of an answer shown in an error
# (meta of the prompt, text of the response, whether it ended with EOS) -> "gold" and any further scores
Judge = Callable[[Mapping[str, Any], str, bool], dict[str, float]]


def load_judge(path: str, key: str) -> Judge:
    """Load the judge named "module:function"; errors as `load_function`. The returned function raises ConfigError if
    the judge fails on an answer."""
    function = load_function(path, key)

    @wraps(function)
    def judge(meta: Mapping[str, Any], response: str, finished: bool) -> dict[str, float]:
        try:
            grades: dict[str, float] = function(meta, response, finished)
        except Exception as error:
            raise ConfigError(
                f"{key}: '{path}' raised {raised(error)} on the answer {response[:SHOWN]!r}; give prompts with the "
                "columns it needs, or let it handle every answer"
            ) from error
        return grades

    return judge


def gold_score(grades: Any, path: str) -> float:
    """The score that ranks answers. Raises ConfigError if the judge `path` returned none."""
    if not isinstance(grades, Mapping) or "gold" not in grades:
        raise ConfigError(f"'{path}' returned {str(grades)[:SHOWN]}, which has no 'gold' to rank answers by; add it")
    return float(grades["gold"])


def load_function(path: str, key: str) -> Callable[..., Any]:
    """Load the function named "module:function". Raises ConfigError, which names the recipe's setting `key`."""
    module_name, separator, function_name = path.partition(":")
    if not (module_name and separator):
        raise ConfigError(f"{key} is '{path}'; it must be 'module:function'")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot find '{path}' ({error}); the module must be importable from here") from error
    if not callable(found):
        raise ConfigError(f"{key}: '{path}' is not a function; name one")
    function: Callable[..., Any] = found
    return function
