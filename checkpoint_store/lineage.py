"""Trace a checkpoint back to its parents and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from checkpoint_store.errors import StoreError
from checkpoint_store.manifest import Manifest
from checkpoint_store.store import CheckpointStore

SHOWN_METRICS = 8


def lineage(store: CheckpointStore, name_or_key: str) -> list[Manifest]:
    """Manifests from the given checkpoint back to the base: each once, and each before all of its parents."""
    oldest_first: dict[str, Manifest] = {}

    def visit(key: str, child: str) -> None:
        if key in oldest_first:
            return
        if not store.exists(key):
            raise StoreError(f"{child} (key {key}) is not in {store.root}; run the pipeline again to make it")
        manifest = store.manifest(key)
        for role, parent_key in manifest.parents.items():
            visit(parent_key, f"the parent '{role}' of {manifest.name}")
        oldest_first[key] = manifest

    visit(store.resolve(name_or_key), name_or_key)
    return list(reversed(oldest_first.values()))


def format_lineage(store: CheckpointStore, name_or_key: str, verbose: bool = False) -> str:
    """The text of `triptych log NAME`, oldest first. `verbose` adds all metrics, libraries and the resolved config."""
    manifests = list(reversed(lineage(store, name_or_key)))
    names = {manifest.key: manifest.name for manifest in manifests}
    chain = " -> ".join(names.values())
    return "\n\n".join([chain, *(_format_one(manifest, names, verbose) for manifest in manifests)]) + "\n"


def _format_one(manifest: Manifest, names: Mapping[str, str], verbose: bool) -> str:
    lines = [f"{manifest.name}  {manifest.key}"]
    lines.append(f"  stage    {manifest.stage}, seed {manifest.seed}, {manifest.created}")
    lines += [f"  parent   {role}: {names[key]} ({key[:8]})" for role, key in manifest.parents.items()]
    for role, entry in manifest.data.items():
        entries = entry if isinstance(entry, list) else [entry]
        lines += [f"  data     {role}: {_inline(item)}" for item in entries]
    lines.append(f"  code     {_inline(manifest.code)}")
    numbers = {name: value for name, value in manifest.metrics.items() if type(value) in (int, float)}
    shown = manifest.metrics if verbose else dict(list(numbers.items())[:SHOWN_METRICS])
    if shown:
        lines.append(f"  metrics  {_inline(shown)}")
    if verbose:
        lines.append(f"  uses     {_inline(manifest.libraries)}")
        config = json.dumps(manifest.config, indent=2, ensure_ascii=False).splitlines()
        lines += ["  config", *(f"    {line}" for line in config)]
    return "\n".join(lines)


def _inline(value: Any) -> str:
    """A nested value on one line. Empty values are left out, fractions are rounded to four significant digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items() if item not in (None, {}, [], ""))
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
