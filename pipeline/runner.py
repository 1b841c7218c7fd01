"""The runner: runs the stages of a recipe in order, skips those already published, stops at the first failure.

ROOT/store/        checkpoints and names (checkpoint_store)
ROOT/runs/KEY/     a stage's run directory: metrics.jsonl, samples, wandb
ROOT/pipelines/RECIPE/summary.json
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint_store import CheckpointStore, Manifest, Root, StoreError, code_state, local_root, open_store
from checkpoint_store.headline import is_number
from checkpoint_store.lineage import warnings_of
from pipeline.architecture import refuse_encoder_decoders
from pipeline.configs import Recipe
from pipeline.inputs import named_modules
from pipeline.plan import EVERYTHING, VERSIONS, Selection, StagePlan, plan_pipeline
from pipeline.terminal.console import visible
from pipeline.terminal.summary import print_next_steps, print_plan, print_samples, print_summary, print_warnings
from stages.errors import ConfigError
from stages.job import Job, StageResult
from stages.ppo.reward_settings import reads_pipelines
from stages.settings import plain
from stages.tracking import Tracker

logger = logging.getLogger("triptych")


def run_pipeline(
    recipe: Recipe,
    root: Root,
    selection: Selection = EVERYTHING,
    dry_run: bool = False,
    quiet: bool = False,
    check_model: bool = False,
) -> dict[str, Any]:
    """Run the stages that must run. Returns the summary, which is also written to summary.json, and prints it unless
    `quiet`. `check_model` loads the base model's weights before the first stage, or in the dry run, to check them.

    An error in a stage is raised; stages that have finished stay published, and the next run continues after them."""
    store = open_store(root)
    plans = plan_pipeline(recipe, store)
    stages = [plan.stage for plan in plans]
    to_run = {p.stage for p in plans if selection.covers(p.stage, stages) and (selection.force or not p.exists)}
    refuse_encoder_decoders(plans, to_run)
    if dry_run:
        print_plan(recipe, plans, to_run, selection)
        check(recipe, plans, to_run, store, dry_run=True, check_model=check_model)
        return {}
    found = check(recipe, plans, to_run, store, check_model=check_model)
    done = run_stages(recipe, plans, to_run, store, root)
    summary = summarise(recipe, done, store, found)
    folder = local_root(root) / "pipelines" / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".summary-{os.getpid()}.json"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(folder / "summary.json")
    if not quiet:
        print_summary(summary, root, uses_reward_model(recipe))
        print_samples(summary, store, root)
        print_next_steps(summary, root)
        print_warnings(summary)
    return summary


def run_stages(
    recipe: Recipe, plans: Sequence[StagePlan], to_run: Collection[str], store: CheckpointStore, root: Root
) -> dict[str, dict[str, Any]]:
    """Run the stages in `to_run`, which `check` has passed, and name the published ones. Returns the summary's rows by
    stage."""
    done: dict[str, dict[str, Any]] = {}
    for number, plan in enumerate(plans, start=1):
        if plan.stage in to_run:
            check_parents(plan, plans, store)
            print(f"[{number}/{len(plans)}] {plan.stage} ({visible(plan.reason)})", flush=True)
            manifest = run_stage(plan, recipe, store, root)
        elif store.exists(plan.key):
            manifest = store.manifest(plan.key)
            store.name(f"{recipe.name}/{plan.stage}", plan.key)
        else:
            continue  # neither selected nor published
        done[plan.stage] = {
            "checkpoint": f"{recipe.name}/{plan.stage}",
            "key": plan.key,
            "seconds": recorded(manifest, "seconds", is_number, store),
            "skipped": plan.stage not in to_run,
        }
    return done


def check(
    recipe: Recipe,
    plans: Sequence[StagePlan],
    to_run: Collection[str],
    store: CheckpointStore,
    dry_run: bool = False,
    check_model: bool = False,
) -> list[str]:
    """Check models and data of the stages in `to_run`, as `check_stages` does. Returns its warnings."""
    if not to_run:
        return []
    from pipeline.gate.check import check_stages  # loads transformers

    if not dry_run and (modules := named_modules(plan.config for plan in plans if plan.stage in to_run)):
        print(f"importing the code that the recipe names: {visible(', '.join(modules))}", flush=True)
    quiet_libraries()
    return check_stages(plans, to_run, store, recipe.seed, dry_run, check_model)


def check_parents(plan: StagePlan, plans: Sequence[StagePlan], store: CheckpointStore) -> None:
    """Raises ConfigError if a checkpoint that the stage reads is missing."""
    makers = {other.key: other.stage for other in plans}
    for role, key in plan.parents.items():
        if not store.exists(key):
            maker = makers.get(key, role)
            raise ConfigError(
                f"{plan.stage} needs the {maker} checkpoint of this recipe, which is not in {store.root}; run the "
                f"whole pipeline, or that stage first: triptych {maker.replace('_', '-')} --config RECIPE"
            )


def run_stage(plan: StagePlan, recipe: Recipe, store: CheckpointStore, root: Root) -> Manifest:
    """Run one stage in its run directory and publish its output. An error gets a note that names the two."""
    directory = local_root(root) / "runs" / plan.key
    try:
        return run_and_publish(plan, recipe, store, directory)
    except Exception as error:
        error.add_note(f"stage {plan.stage}, run directory {directory}")
        raise


def run_and_publish(plan: StagePlan, recipe: Recipe, store: CheckpointStore, directory: Path) -> Manifest:
    quiet_libraries()
    shutil.rmtree(directory / "output", ignore_errors=True)  # left by an interrupted run
    parents = {role: store.path(key) for role, key in plan.parents.items()} | dict(plan.outside)
    started = time.monotonic()
    with Tracker(
        directory,
        project=recipe.tracking.project,
        group=recipe.tracking.group or recipe.name,
        job_type=plan.stage,
        run_id=f"{recipe.name}-{plan.stage}-{plan.key[:8]}",
        config={**plain(plan.config), "seed": recipe.seed, "key": plan.key},
        wandb_mode=recipe.tracking.wandb,
    ) as tracker:
        module = importlib.import_module(f"stages.{plan.stage}.stage")  # torch is imported here, not earlier
        result: StageResult = module.run(plan.config, Job(directory, parents, tracker, recipe.seed))
        metrics = {**as_json(result.metrics), "seconds": round(time.monotonic() - started, 2)}
        metrics |= how_read(directory / "output")
        if tracker.warnings:
            metrics["warnings"] = list(tracker.warnings)
        if store.exists(plan.key):  # --force: the old checkpoint stays until the new one is ready
            store.remove(plan.key)
        manifest = store.publish(
            directory / "output",
            stage=plan.stage,
            name=f"{recipe.name}/{plan.stage}",
            key=plan.key,
            config=plain(plan.config),
            parents=plan.parents,
            data=merged_accounts(plan.data, result.data),
            code_version={"stage": f"{plan.stage}/{VERSIONS[plan.stage]}", **code_state(Path(__file__).parent.parent)},
            seed=recipe.seed,
            metrics=metrics,
        )
        tracker.summary({name: value for name, value in metrics.items() if isinstance(value, int | float)})
    shutil.rmtree(directory / "output")
    shutil.rmtree(directory / "trainer", ignore_errors=True)
    return manifest


def how_read(directory: Path) -> dict[str, Any]:
    """How a stage's model is read, for the manifest; nothing for a stage without a model or for an encoder-decoder."""
    from policy.language_model import load_config
    from policy.reading.ways import reading_for_record

    if not (directory / "config.json").is_file():
        return {}
    config = load_config(directory)
    return {} if config.is_encoder_decoder else {"reading": reading_for_record(config)}


def merged_accounts(planned: Mapping[str, Any], counted: Mapping[str, Any]) -> dict[str, Any]:
    """The planned data sources, each merged with the counts made during the run."""
    roles = dict.fromkeys([*planned, *counted])
    return {role: {**planned.get(role, {}), **counted.get(role, {})} for role in roles}


def as_json(values: Any) -> Any:
    """The values of a manifest's metrics; numbers that are not finite become text, since JSON has none."""
    if isinstance(values, Mapping):
        return {name: as_json(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [as_json(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def recorded(manifest: Manifest, name: str, is_sound: Callable[[Any], bool], store: CheckpointStore) -> Any:
    """A metric that every checkpoint of its stage has. Raises StoreError if a changed manifest lacks it."""
    value = manifest.metrics.get(name)
    if not is_sound(value):
        raise StoreError(
            f"{store.root}/checkpoints/{manifest.key}/manifest.json: metrics lack a sound '{name}'; restore it from a "
            f"copy, or run {manifest.stage} again with --force"
        )
    return value


def is_comparison(models: Any) -> bool:
    """Whether these are evaluate's numbers of the SFT model and the policy."""
    if not isinstance(models, Mapping) or not {"sft", "ppo"} <= models.keys():
        return False
    numbers = [value for model in models.values() if isinstance(model, Mapping) for value in model.values()]
    wins = models["ppo"] if isinstance(models["ppo"], Mapping) else {}
    named = {"win_rate", "win_rate_low", "win_rate_high"} <= wins.keys()
    return named and all(isinstance(model, Mapping) for model in models.values()) and all(map(is_number, numbers))


def summarise(
    recipe: Recipe, done: Mapping[str, Mapping[str, Any]], store: CheckpointStore, checked: Sequence[str] = ()
) -> dict[str, Any]:
    """The summary of the published stages: what ran, how the models compare, how accurate the reward model is, and what
    the stages warned about, after the warnings of the check before them."""
    summary: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, "stages": dict(done)}
    manifests = {stage: store.manifest(row["key"]) for stage, row in done.items()}
    if "evaluate" in done:
        summary["evaluation"] = recorded(manifests["evaluate"], "models", is_comparison, store)
        decided_by = recorded(manifests["evaluate"], "decided_by", lambda value: isinstance(value, str), store)
        summary["decided_by"] = decided_by
        if is_number(base := manifests["evaluate"].metrics.get("base_text_nll")):
            summary["base_text_nll"] = base
    if "reward_model" in done:
        metrics = manifests["reward_model"].metrics
        names = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy", "n")
        summary["reward_model"] = {name: metrics[name] for name in names if name in metrics}
        if isinstance(second := metrics.get("second"), Mapping):
            kept = (*names, "score_correlation")
            summary["reward_model"]["second"] = {name: second[name] for name in kept if name in second}
    warnings = {"before the first stage": list(checked)} if checked else {}
    warnings |= {stage: found for stage, manifest in manifests.items() if (found := warnings_of(manifest))}
    if warnings:
        summary["warnings"] = warnings
    return summary


def uses_reward_model(recipe: Recipe) -> bool:
    """Whether something in the recipe reads the reward model that it trains. One without PPO is about that model."""
    scored = [recipe.ppo.rewards if recipe.ppo else [], recipe.evaluate.rewards if recipe.evaluate else []]
    return recipe.ppo is None or any(map(reads_pipelines, scored))


def quiet_libraries() -> None:
    """Silence libraries, so that the screen shows progress and what a user can act on."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import huggingface_hub
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if not sys.stderr.isatty():  # downloads too would write carriage returns into a log file
        huggingface_hub.utils.disable_progress_bars()
