"""Trace a checkpoint back to its parents and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from checkpoint_store.errors import StoreError
from checkpoint_store.headline import headline, short
from checkpoint_store.manifest import Manifest
from checkpoint_store.store import CheckpointStore

FINGERPRINTS = ("fingerprint", "dirty")  # shown only on request: they say nothing to a reader


def lineage(store: CheckpointStore, name_or_key: str) -> list[Manifest]:
    """Manifests from the given checkpoint back to the base: each once, and each before all of its parents.

    Raises StoreError if one is missing, or if a checkpoint is its own ancestor."""
    start = store.resolve(name_or_key)
    oldest_first: dict[str, Manifest] = {}
    manifests = {start: store.manifest(start)}
    path = {start: iter(manifests[start].parents.items())}  # from `start` down to the checkpoint being looked at
    while path:
        key, parents = next(reversed(path.items()))
        step = next(parents, None)
        if step is None:
            oldest_first[key] = manifests[key]
            del path[key]
            continue
        role, parent = step
        if parent in path:
            raise StoreError(
                f"{manifests[key].name} (key {key}) in {store.root} has the parent '{role}' {parent}, which descends "
                "from it: a manifest was changed; restore it from a copy, or delete both checkpoints and run again"
            )
        elif parent not in oldest_first:
            if not store.exists(parent):
                raise StoreError(
                    f"the parent '{role}' of {manifests[key].name} (key {parent}) is not in {store.root}; "
                    "run the pipeline again to make it"
                )
            manifests[parent] = store.manifest(parent)
            path[parent] = iter(manifests[parent].parents.items())
    return list(reversed(oldest_first.values()))


def format_lineage(store: CheckpointStore, name_or_key: str, verbose: bool = False) -> str:
    """The text of `triptych log NAME`, oldest first. `verbose` adds fingerprints, all metrics, libraries and the
    resolved config."""
    manifests = list(reversed(lineage(store, name_or_key)))
    names = {manifest.key: manifest.name for manifest in manifests}
    chain = " -> ".join(names.values())
    return "\n\n".join([chain, *(_format_one(manifest, names, verbose) for manifest in manifests)]) + "\n"


def _format_one(manifest: Manifest, names: Mapping[str, str], verbose: bool) -> str:
    lines = [f"{manifest.name}  {manifest.key}"]
    if numbers := headline(manifest.stage, manifest.metrics):
        lines.append(f"  numbers  {', '.join(f'{words} {short(value)}' for words, value in numbers.items())}")
    lines += [f"  warning  {text}" for text in warnings_of(manifest)]
    lines.append(f"  stage    {manifest.stage}, seed {manifest.seed}, {manifest.created}")
    lines += [f"  parent   {role}: {names[key]} ({key[:8]})" for role, key in manifest.parents.items()]
    for role, account in manifest.data.items():
        lines.append(f"  data     {role}: {inline(account if verbose else without_fingerprints(account))}")
    lines.append(f"  code     {inline(manifest.code if verbose else without_fingerprints(manifest.code))}")
    if verbose:
        lines.append(f"  metrics  {inline(manifest.metrics)}")
        lines.append(f"  uses     {inline(manifest.libraries)}")
        config = json.dumps(manifest.config, indent=2, ensure_ascii=False).splitlines()
        lines += ["  config", *(f"    {line}" for line in config)]
    return "\n".join(lines)


def warnings_of(manifest: Manifest) -> list[str]:
    """What the stage warned about; [] for a checkpoint of a version that did not keep its warnings."""
    found = manifest.metrics.get("warnings")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def without_fingerprints(account: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in account.items() if name not in FINGERPRINTS}


def inline(value: Any) -> str:
    """A nested value on one line. Empty values are left out, fractions are rounded to four significant digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inline(item)}" for key, item in value.items() if item not in (None, {}, [], ""))
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return short(value) if isinstance(value, float) else str(value)
