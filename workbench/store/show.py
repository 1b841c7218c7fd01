"""`triptych show MODEL`: one checkpoint: its numbers, changed settings, data, parents, warnings and folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from checkpoint_store import CheckpointStore, Manifest, Root, local_root, open_store
from checkpoint_store.headline import headline, short
from checkpoint_store.lineage import inline, warnings_of, without_fingerprints
from pipeline.build import dataclass_in
from pipeline.configs import Recipe
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import visible
from stages.settings import plain
from workbench.store.listing import age, size, titles_of


def command(words: Sequence[str]) -> None:
    """Run `triptych show`."""
    parser = Arguments("show", __doc__)
    parser.add_argument("name", metavar="MODEL", help="name such as quickstart/ppo, key, or folder of a checkpoint")
    parser.add_root()
    parser.add_argument("--verbose", action="store_true", help="show every metric and every setting")
    options = parser.parse_args(words)
    store = open_store(options.root)
    manifest = store.manifest(store.resolve(options.name))
    for title, line in account(manifest, store, options.root, options.verbose):
        print(visible(f"{title:<10}{line}".rstrip()))


def account(manifest: Manifest, store: CheckpointStore, root: Root, verbose: bool) -> Iterator[tuple[str, str]]:
    """Yield (title or "", line)."""
    titles = titles_of(store.survey()[0], store.names())
    yield titles[manifest.key], f"  {manifest.key}"
    numbers = headline(manifest.stage, manifest.metrics)
    yield from titled("numbers", [", ".join(f"{words} {short(value)}" for words, value in numbers.items())])
    yield from titled("warnings", warnings_of(manifest))
    yield "stage", f"{manifest.stage}, seed {manifest.seed}, {manifest.created} ({age(manifest)} ago)"
    changed = flat(manifest.config) if verbose else changed_settings(manifest)
    before = {} if verbose else flat(defaults(manifest.stage))
    yield from titled(
        "settings",
        [
            f"{name} {as_text(value)}" + (f"  (default {as_text(before[name])})" if name in before else "")
            for name, value in changed.items()
        ],
    )
    yield from titled("parents", [f"{role}: {titles.get(key, key)}" for role, key in manifest.parents.items()])
    yield from titled("data", [f"{role}: {inline(without_fingerprints(row))}" for role, row in manifest.data.items()])
    if verbose:
        yield from titled("metrics", [f"{name} {as_text(value)}" for name, value in flat(manifest.metrics).items()])
        yield "code", inline(manifest.code)
        yield "libraries", inline(manifest.libraries)
    yield "folder", f"{folder_of(manifest, store)} ({size(manifest)})"
    run = local_root(root) / "runs" / manifest.key
    if run.is_dir():
        yield "run", str(run)


def titled(title: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The lines, the first with a title; nothing for none."""
    for line in filter(None, lines):
        yield title, line
        title = ""


def folder_of(manifest: Manifest, store: CheckpointStore) -> str:
    return "/".join(filter(None, (store.root.rstrip("/"), "checkpoints", manifest.key, manifest.folder)))


def changed_settings(manifest: Manifest) -> dict[str, Any]:
    """Dotted name -> value, of the settings that differ from the defaults or have none."""
    before = flat(defaults(manifest.stage))
    now = flat(manifest.config)
    return {name: value for name, value in now.items() if name not in before or before[name] != value}


def defaults(stage: str) -> dict[str, Any]:
    """The default settings of a stage, nested as in its manifest; {} for a stage that this version does not have."""
    section = dataclass_in(get_type_hints(Recipe).get(stage))
    found = {}
    for field in fields(section) if section else ():
        if field.default is not MISSING:
            found[field.name] = plain(field.default)
        elif field.default_factory is not MISSING:
            found[field.name] = plain(field.default_factory())
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names; empty ones stay as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def as_text(value: Any) -> str:
    """A setting or number as it is written in a recipe; lists of sources by their paths."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "path" in item for item in value):
        return ", ".join(str(item["path"]) for item in value)
    if isinstance(value, float):
        return short(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
