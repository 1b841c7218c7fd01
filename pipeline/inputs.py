"""What a stage reads besides its parents: data, code that the recipe names, template and base model, with fingerprints.

Code is found by its file and parsed, never imported: it runs only when the stage does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from data_schema import DataError, Source, Template, fingerprint, template
from data_schema.locations import FileLocation, locate
from pipeline.build import cut
from pipeline.locations import base_model_fingerprint
from stages.judging import check_function
from stages.ppo.reward_settings import reward_role
from stages.settings import source_lists


def data_of(config: Any, seed: int) -> dict[str, Any]:
    """All data sources, judges and other code that a config names, with their fingerprints. Imports no code."""
    data: dict[str, Any] = {}
    for name, sources in source_lists(config).items():
        setting = f"{config.section}.{name}"
        data[name] = {
            "source": ", ".join(source.path for source in sources),
            "fingerprint": [source_fingerprint(source, seed, setting) for source in sources],
        }
        for path in (source.path for source in sources if source.path.startswith("python:")):
            check_function(path.removeprefix("python:"), setting)
    for role, setting, path in functions(config):
        check_function(path, setting)
        function = Source(f"python:{path}")
        if role is not None:
            data[role] = {"source": function.path, "fingerprint": source_fingerprint(function, seed, setting)}
    if getattr(config, "template", "tokenizer") != "tokenizer":  # the tokenizer's own comes with the base model
        chosen = _template(config)
        data["template"] = {"source": config.template, "fingerprint": f"{chosen.name}/{chosen.version}"}
    if getattr(config, "base_model", None) is not None:
        print_of = base_model_fingerprint(config.base_model, f"{config.section}.base_model")
        data["base_model"] = {"source": config.base_model, "fingerprint": print_of}
    return data


def _template(config: Any) -> Template:
    try:
        return template(config.template)
    except DataError as error:
        raise DataError(f"{config.section}.template: {cut(str(error))}", field="template") from None


def source_fingerprint(source: Source, seed: int, setting: str) -> str:
    """The fingerprint of a source's contents and of its files' names, from which some formats take a row's task."""
    try:
        location = locate(source.path)
        mark = fingerprint(source, seed)
        if not isinstance(location, FileLocation):
            return mark
        names = "/".join(path.name for path in location.paths)
        return hashlib.sha256(f"{mark} {names}".encode(errors="surrogateescape")).hexdigest()
    except DataError as error:
        looked = "; relative paths are looked up here, next to the recipe and in TRIPTYCH_DATA"
        raise DataError(f"{setting}: {error}{looked if 'no such file' in str(error) else ''}", field="path") from None


def functions(config: Any) -> list[tuple[str | None, str, str]]:
    """(role in the manifest's data, or None if it does not affect the result; setting; "module:function") of the code
    that a config names, data sources left out."""
    sampling = getattr(config, "sampling", None)
    named = [
        ("judge", "judge", getattr(config, "judge", None)),
        ("labeler", "labeler", getattr(config, "labeler", None)),
        ("engine", "sampling.engine", sampling.engine if sampling else None),
        (None, "monitor", getattr(config, "monitor", None)),
    ]
    for i, part in enumerate(getattr(config, "rewards", [])):
        named.append((reward_role(i), f"rewards[{i}].function", part.function))
    return [(role, f"{config.section}.{setting}", path) for role, setting, path in named if path is not None]


def named_modules(configs: Iterable[Any]) -> list[str]:
    """The Python modules that stages with these configs import because the recipe names them."""
    found: dict[str, None] = {}
    for config in configs:
        paths = [source.path for sources in source_lists(config).values() for source in sources]
        found |= dict.fromkeys(path.split(":")[1] for path in paths if path.startswith("python:"))
        found |= dict.fromkeys(path.partition(":")[0] for _, _, path in functions(config))
    return list(found)
