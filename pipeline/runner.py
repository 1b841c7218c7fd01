"""The runner: runs the stages of a recipe in order, skips those already published, stops at the first failure.

ROOT/store/        checkpoints and names (checkpoint_store)
ROOT/runs/KEY/     a stage's run directory: metrics.jsonl, samples, wandb
ROOT/pipelines/RECIPE/summary.json
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint_store import CheckpointStore, Manifest, code_state
from pipeline.architecture import refuse_encoder_decoders
from pipeline.configs import Recipe
from pipeline.plan import EVERYTHING, VERSIONS, Selection, StagePlan, plan_pipeline
from pipeline.summary import print_plan, print_summary
from stages.errors import ConfigError
from stages.job import Job, StageResult
from stages.settings import plain
from stages.tracking import Tracker

logger = logging.getLogger("triptych")


def run_pipeline(
    recipe: Recipe, root: Path, selection: Selection = EVERYTHING, dry_run: bool = False
) -> dict[str, Any]:
    """Run the stages that must run. Returns the summary, which is also written to summary.json.

    An error in a stage is raised; stages that have finished stay published, and the next run continues after them."""
    store = CheckpointStore(root / "store")
    plans = plan_pipeline(recipe, store)
    stages = [plan.stage for plan in plans]
    to_run = {p.stage for p in plans if selection.covers(p.stage, stages) and (selection.force or not p.exists)}
    refuse_encoder_decoders(plans, to_run)
    if dry_run:
        print_plan(recipe, plans, to_run, selection)
        return {}
    done = run_stages(recipe, plans, to_run, store, root)
    summary = summarise(recipe, done, store)
    folder = root / "pipelines" / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".summary-{os.getpid()}.json"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(folder / "summary.json")
    print_summary(summary, root)
    return summary


def run_stages(
    recipe: Recipe, plans: Sequence[StagePlan], to_run: Collection[str], store: CheckpointStore, root: Path
) -> dict[str, dict[str, Any]]:
    """Run the stages in `to_run` and name the published ones. Returns the summary's rows by stage."""
    done: dict[str, dict[str, Any]] = {}
    if to_run:
        from pipeline.gate import check_stages  # loads transformers

        check_stages(plans, to_run, store, recipe.seed)
    for number, plan in enumerate(plans, start=1):
        if plan.stage in to_run:
            check_parents(plan, plans, store)
            print(f"[{number}/{len(plans)}] {plan.stage} ({plan.reason})", flush=True)
            manifest = run_stage(plan, recipe, store, root)
        elif store.exists(plan.key):
            manifest = store.manifest(plan.key)
            store.name(f"{recipe.name}/{plan.stage}", plan.key)
        else:
            continue  # neither selected nor published
        done[plan.stage] = {
            "checkpoint": f"{recipe.name}/{plan.stage}",
            "key": plan.key,
            "seconds": manifest.metrics["seconds"],
            "skipped": plan.stage not in to_run,
        }
    return done


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


def run_stage(plan: StagePlan, recipe: Recipe, store: CheckpointStore, root: Path) -> Manifest:
    """Run one stage in its run directory and publish its output."""
    quiet_libraries()
    directory = root / "runs" / plan.key
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
        metrics = {**result.metrics, "seconds": round(time.monotonic() - started, 2)}
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


def merged_accounts(planned: Mapping[str, Any], counted: Mapping[str, Any]) -> dict[str, Any]:
    """The planned data sources, each merged with the counts made during the run."""
    roles = dict.fromkeys([*planned, *counted])
    return {role: {**planned.get(role, {}), **counted.get(role, {})} for role in roles}


def summarise(recipe: Recipe, done: Mapping[str, Mapping[str, Any]], store: CheckpointStore) -> dict[str, Any]:
    """The summary of the published stages: what ran, how the models compare, how accurate the reward model is."""
    summary: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, "stages": dict(done)}
    if "evaluate" in done:
        metrics = store.manifest(done["evaluate"]["key"]).metrics
        summary["evaluation"], summary["decided_by"] = metrics["models"], metrics["decided_by"]
    if "reward_model" in done:
        metrics = store.manifest(done["reward_model"]["key"]).metrics
        names = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy", "n")
        summary["reward_model"] = {name: metrics[name] for name in names if name in metrics}
    return summary


def quiet_libraries() -> None:
    """Silence libraries, so that the screen shows progress and what a user can act on."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
