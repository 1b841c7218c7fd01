"""Code that a recipe names as "module:function"; labelers and judges are called with (meta, response, finished)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from stages.errors import ConfigError

# meta of the prompt, text of the response, whether it ended by itself -> "gold" and any parts of it
Judge = Callable[[Mapping[str, Any], str, bool], dict[str, float]]


def load_judge(path: str, key: str) -> Judge:
    """The judge behind "module:function"; errors as `load_function`."""
    judge: Judge = load_function(path, key)
    return judge


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
