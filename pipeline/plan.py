"""Plans a pipeline: which stages it has, their keys and parents, and why each must run or can be skipped.

A stage's key is a hash of everything that decides its result, so the plan is known before anything runs. No torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_store import CheckpointStore, StoreError, stage_key
from data_schema import Source, fingerprint, template
from data_schema.held_out import HeldOutTasks, overlap
from pipeline.configs import Recipe
from stages.errors import ConfigError
from stages.judging import load_function, load_judge
from stages.ppo.reward_settings import reads_pipelines, reward_role
from stages.select.settings import SelectConfig
from stages.settings import plain, source_lists

# stage -> the stages whose checkpoints it reads, in the order of the chain
PARENTS = {
    "sft": (),
    "comparisons": ("sft",),
    "reward_model": ("sft", "comparisons"),
    "select": ("sft", "reward_model"),
    "ppo": ("sft", "reward_model"),
    "evaluate": ("sft", "reward_model", "ppo"),
}
STAGES = tuple(PARENTS)
# Part of the key; increased when the same config would give a different result.
VERSIONS = {"sft": 2, "comparisons": 2, "reward_model": 2, "select": 1, "ppo": 2, "evaluate": 1}
# Not part of the key, since they do not change the result: where and in which pieces the work is done, what is kept of
# it, when a run is stopped, and the name of a preset whose settings are filled in.
IMMATERIAL = (
    *("preset", "device", "packing", "micro_batch", "micro_batch_size", "micro_batch_tokens"),
    *("gradient_checkpointing", "offload_frozen", "max_ratio", "max_approx_kl", "keep_rollouts", "snapshot_every"),
)


@dataclass(frozen=True)
class StagePlan:
    stage: str
    config: Any  # with open settings filled in
    key: str
    parents: Mapping[str, str]  # role -> key in the store
    outside: Mapping[str, Path]  # role -> model directory that is not in the store
    data: Mapping[str, Any]  # role -> source and fingerprint
    exists: bool
    reason: str  # why it would run; "published" if it would not


class Selection(NamedTuple):
    """The stages that a command selects."""

    first: str | None = None  # start here; earlier stages must be published
    only: str | None = None  # run only this one; what it reads must be published
    force: bool = False  # run the selected stages even if they are published

    def covers(self, stage: str, stages: Sequence[str]) -> bool:
        for named in filter(None, (self.first, self.only)):
            if named not in stages:
                raise ConfigError(f"this pipeline has no stage '{named}'; its stages are: {', '.join(stages)}")
        if self.only:
            return stage == self.only
        return self.first is None or stages.index(stage) >= stages.index(self.first)


EVERYTHING = Selection()


def plan_pipeline(recipe: Recipe, store: CheckpointStore) -> list[StagePlan]:
    """Plan all stages of the recipe, in order. Raises DataError or ConfigError for missing data or models."""
    plans: dict[str, StagePlan] = {}
    for stage in STAGES:
        config = getattr(recipe, stage)
        if stage == "select":
            config = (config or SelectConfig()) if recipe.sft.select == "reward_model" else None
        given = recipe.reward_model is not None and recipe.reward_model.data
        if config is None or (stage == "comparisons" and given):
            continue
        if stage == "reward_model" and not config.demonstrations:
            config = replace(config, demonstrations=recipe.sft.data)
        if stage == "evaluate" and not config.rewards and recipe.ppo is not None:
            config = replace(config, rewards=recipe.ppo.rewards)
        if recipe.held_out_tasks is not None and stage != "evaluate":
            config = _keep_out(config, recipe.held_out_tasks)
        parents, outside = _parents(stage, config, plans, store)
        data = _data(config, recipe.seed)
        for role, path in outside.items():
            data[role] = {"source": str(path), "fingerprint": model_fingerprint(str(path))}
        material = plain(config)
        for name in IMMATERIAL:
            material.pop(name, None)
        version = f"{stage}/{VERSIONS[stage]}"
        key = stage_key(stage, {**material, "seed": recipe.seed}, parents, data, version)
        exists = store.exists(key)
        reason = "published" if exists else _why(f"{recipe.name}/{stage}", material, parents, data, recipe.seed, store)
        plans[stage] = StagePlan(stage, config, key, parents, outside, data, exists, reason)
    return list(plans.values())


def _keep_out(config: Any, held_out: HeldOutTasks) -> Any:
    """The config with the held-out tasks set on its sources. Raises ConfigError if a source is held out itself."""
    changed = {}
    for name, sources in source_lists(config).items():
        for source in sources:
            place = f"{config.section}.{name} reads '{source.path}', which"
            if any(overlap(source.path, other) for other in held_out.sources):
                raise ConfigError(f"{place} held_out_tasks.sources keeps out of training; remove it from one of them")
            if source.held_out_tasks is not None:
                raise ConfigError(f"{place} has its own held_out_tasks; move them to the recipe's held_out_tasks")
        changed[name] = [replace(source, held_out_tasks=held_out) for source in sources] if held_out.meta else sources
    return replace(config, **changed)


def _parents(
    stage: str, config: Any, plans: Mapping[str, StagePlan], store: CheckpointStore
) -> tuple[dict[str, str], dict[str, Path]]:
    """Returns (role -> key, role -> directory outside the store). The recipe may name a checkpoint for a role."""
    parents: dict[str, str] = {}
    outside: dict[str, Path] = {}
    roles = {role: getattr(config, role, None) for role in PARENTS[stage]}
    rewards = getattr(config, "rewards", None)
    if rewards is not None:
        if not reads_pipelines(rewards):
            del roles["reward_model"]
        roles |= {reward_role(i): part.model for i, part in enumerate(rewards) if part.model is not None}
    for role, named in roles.items():
        if named is None:
            # After `select`, the SFT model is the checkpoint that it chose.
            maker = "select" if role == "sft" and "select" in plans else role
            if maker in plans:
                parents[role] = plans[maker].key
        elif Path(named).is_dir():
            outside[role] = Path(named)
        else:
            try:
                parents[role] = store.resolve(named)
            except StoreError as error:
                raise ConfigError(f"{stage}.{role} is '{named}', which is not a directory, and: {error}") from error
    return parents, outside


def _data(config: Any, seed: int) -> dict[str, Any]:
    """All data sources, judges and other code that a config names, with their fingerprints."""
    data: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, list) and value and isinstance(value[0], Source):
            data[name] = {
                "source": ", ".join(source.path for source in value),
                "fingerprint": [fingerprint(source, seed) for source in value],
            }
    for name in ("judge", "labeler"):
        if getattr(config, name, None) is not None:
            load_judge(getattr(config, name), f"{config.section}.{name}")  # fail on a wrong name before anything runs
            function = Source(f"python:{getattr(config, name)}")
            data[name] = {"source": function.path, "fingerprint": fingerprint(function)}
    sampling = getattr(config, "sampling", None)
    if sampling is not None and sampling.engine is not None:
        load_function(sampling.engine, f"{config.section}.sampling.engine")
        function = Source(f"python:{sampling.engine}")
        data["engine"] = {"source": function.path, "fingerprint": fingerprint(function)}
    for place, part in enumerate(getattr(config, "rewards", [])):
        if part.function is not None:
            load_function(part.function, f"{config.section}.rewards")
            function = Source(f"python:{part.function}")
            data[reward_role(place)] = {"source": function.path, "fingerprint": fingerprint(function)}
    if getattr(config, "template", "tokenizer") != "tokenizer":  # the tokenizer's own comes with the base model
        chosen = template(config.template)
        data["template"] = {"source": config.template, "fingerprint": f"{chosen.name}/{chosen.version}"}
    if hasattr(config, "base_model"):
        data["base_model"] = {"source": config.base_model, "fingerprint": model_fingerprint(config.base_model)}
    return data


def model_fingerprint(source: str) -> str:
    """The sha256 of a model directory's files; for a hub model its name and the revision in the local cache, if any."""
    directory = Path(source)
    if not directory.is_dir():
        cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
        revision = cache / f"models--{source.replace('/', '--')}" / "refs" / "main"
        return f"{source}@{revision.read_text().strip() if revision.is_file() else 'main'}"
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json"):
        digest.update(path.relative_to(directory).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _why(
    name: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    data: Mapping[str, Any],
    seed: int,
    store: CheckpointStore,
) -> str:
    """What has changed since the checkpoint that has this name now."""
    try:
        old = store.manifest(store.resolve(name))
    except StoreError:
        return "never run"
    changes = []
    if old.seed != seed:
        changes.append(f"seed {old.seed} -> {seed}")
    changes += [f"{key} {a!r} -> {b!r}" for key, a, b in _differences(old.config, config)]
    changes += [f"another {role} checkpoint" for role, key in parents.items() if old.parents.get(role) != key]
    changes += [
        f"{role} changed"
        for role, row in data.items()
        if old.data.get(role, {}).get("fingerprint") != row["fingerprint"]
    ]
    return "; ".join(changes[:4]) + (" ..." if len(changes) > 4 else "") if changes else "the stage's code changed"


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [(prefix, old, new)]
    found = []
    for key in new:
        if key not in IMMATERIAL:
            found += _differences(old.get(key), new[key], f"{prefix}.{key}".lstrip("."))
    return found
