"""Plans a pipeline: which stages it has, their keys and parents, and why each must run or can be skipped.

A stage's key is a hash of everything that decides its result, so the plan is known before anything runs. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_store import CheckpointStore, StoreError, stage_key
from data_schema.held_out import HeldOutTasks, overlap
from pipeline.build import shown
from pipeline.configs import Recipe
from pipeline.inputs import data_of
from pipeline.locations import base_model_fingerprint, model_fingerprint
from stages.errors import ConfigError
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
VERSIONS = {"sft": 2, "comparisons": 2, "reward_model": 2, "select": 1, "ppo": 2, "evaluate": 2}
# Not part of the key, since they do not change the result: where and in which pieces the work is done, what is kept of
# it, when a run is stopped, and the name of a preset whose settings are filled in.
IMMATERIAL = (
    *("preset", "device", "packing", "micro_batch", "micro_batch_size", "micro_batch_tokens"),
    *("gradient_checkpointing", "offload_frozen", "max_ratio", "max_approx_kl", "keep_rollouts", "snapshot_every"),
    "trunk_memory",
)
# Not part of the key either: where data and models are. Their contents are, as fingerprints or as keys of parents.
LOCATIONS = ("path", "promptsource", "sources", "template", "base_model", "sft", "reward_model", "model")


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
            config = (config or SelectConfig()) if recipe.sft and recipe.sft.select == "reward_model" else None
        given = recipe.reward_model is not None and recipe.reward_model.data
        if config is None or (stage == "comparisons" and given):
            continue
        if stage == "reward_model" and not config.demonstrations and recipe.sft is not None:
            config = replace(config, demonstrations=recipe.sft.data)
        if stage == "evaluate" and recipe.ppo is not None:
            sft = config.sft or recipe.ppo.sft
            config = replace(
                config,
                sft=sft,
                base_model=config.base_model or (_base_of(sft, store) if sft else recipe.sft and recipe.sft.base_model),
                reward_model=config.reward_model or recipe.ppo.reward_model,
                rewards=config.rewards or recipe.ppo.rewards,
            )
        if recipe.held_out_tasks is not None and stage != "evaluate":
            config = _keep_out(config, recipe.held_out_tasks)
        try:
            parents, outside = _parents(stage, config, plans, store)
            data = data_of(config, recipe.seed)
            for role, path in outside.items():
                data[role] = {"source": str(path), "fingerprint": model_fingerprint(str(path))}
        except OSError as error:
            problem = f"{shown(error.filename)}: {error.strerror}"
            raise ConfigError(f"{stage} names a path that cannot be read: {problem}; check the path") from None
        settings = material(plain(config))
        contents = {role: row["fingerprint"] for role, row in data.items()}
        version = f"{stage}/{VERSIONS[stage]}"
        key = stage_key(stage, {**settings, "seed": recipe.seed}, parents, contents, version)
        exists = store.exists(key)
        reason = "published" if exists else _why(f"{recipe.name}/{stage}", settings, parents, data, recipe.seed, store)
        plans[stage] = StagePlan(stage, config, key, parents, outside, data, exists, reason)
    return list(plans.values())


def _base_of(sft: str, store: CheckpointStore) -> str | None:
    """The base model of a published SFT model, by its manifest; None if it is not known or is not where it was."""
    try:
        place = store.locate(sft)
        if isinstance(place, Path):
            return None
        manifest = store.manifest(place)
        if manifest.stage == "select":
            manifest = store.manifest(manifest.parents["sft"])
        known = manifest.data["base_model"]
        source = str(known["source"])
        there = base_model_fingerprint(source, "evaluate.base_model") == known["fingerprint"]
    except (StoreError, ConfigError, KeyError):
        return None
    return source if there else None


def material(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage's plain config that are part of its key."""
    return {name: _without_locations(value) for name, value in config.items() if name not in IMMATERIAL + LOCATIONS}


def _without_locations(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_locations(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    # The names in `meta` are those of the user's columns.
    return {
        name: item if name == "meta" else _without_locations(item)
        for name, item in value.items()
        if name not in LOCATIONS
    }


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
        else:
            try:
                place = store.locate(named)
            except StoreError as error:
                raise ConfigError(
                    f"{stage}.{role} is '{named}', which is not a directory in {Path.cwd()}, next to the recipe or in "
                    f"TRIPTYCH_DATA, and: {error}"
                ) from error
            if isinstance(place, Path):
                outside[role] = place
            else:
                parents[role] = place
    return parents, outside


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
    stage = name.rpartition("/")[2]
    changes += [
        f"{stage}.{path} {_shown(a)} -> {_shown(b)}" for path, a, b in _differences(material(old.config), config)
    ]
    changes += [f"another {role} checkpoint" for role, key in parents.items() if old.parents.get(role) != key]
    changes += [
        f"{role} changed"
        for role, row in data.items()
        if old.data.get(role, {}).get("fingerprint") != row["fingerprint"]
    ]
    return "; ".join(changes[:4]) + (" ..." if len(changes) > 4 else "") if changes else "the stage's code changed"


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(path, old value, new value) of each setting that differs."""
    if old == new:
        return []
    found = []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            found += _differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and isinstance(new[0], Mapping):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            found += _differences(a, b, prefix if len(new) == 1 else f"{prefix}[{i}]")
    else:
        found.append((prefix, old, new))
    return found


def _shown(value: Any) -> str:
    """A value in a reason, as a recipe would have it: a section by its settings, a list of sections by its length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        if any(isinstance(item, Mapping) for item in value):
            return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
