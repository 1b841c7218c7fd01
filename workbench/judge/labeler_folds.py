"""`triptych labeler-folds RECIPE`: compare a reward model's accuracy on new labelers with that on its own labelers.

InstructGPT (3.5, C.2) splits its labelers into five groups, trains on four and tests on the fifth: 69.6 +- 0.9 % on the
fifth group, 72.4 +- 0.4 % on the groups it was trained on. This command does the same. It measures both accuracies on
the same held-out prompts, which no fold was trained on.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from checkpoint_store import Root, local_root, open_store
from data_schema import Comparison, Records, Source, load_all, write_records
from pipeline.configs import Recipe
from pipeline.plan import StagePlan, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import check_parents, quiet_libraries
from pipeline.terminal.arguments import Arguments, count
from pipeline.terminal.console import as_json, screen, visible
from stages.errors import ConfigError
from stages.job import Job, keep_back
from stages.reward_model import stage as reward_model
from stages.reward_model.measures import judge_scores
from stages.statistics import mean_with_standard_error
from stages.tracking import Tracker
from workbench.judge.command import score_comparisons
from workbench.judge.scorer import open_scorer

RESULT_FILE = "labeler_folds.json"
KEPT = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy", "n", "n_prompts")
PAPER = {"new labelers": "69.6 +- 0.9 %", "own labelers": "72.4 +- 0.4 %"}


def command(words: Sequence[str]) -> None:
    """Run `triptych labeler-folds RECIPE [--folds N] [overrides]`."""
    parser = Arguments("labeler-folds", __doc__, recipe_settings=Recipe.__dataclass_fields__)
    add = parser.add_argument
    add("recipe", type=Path, help="recipe whose reward_model.data names labelers")
    add("--folds", type=count, default=5, help="groups of labelers, one model for each (default: 5)")
    parser.add_root()
    add("--json", action="store_true", help="print the numbers as JSON instead of a table")
    options, overrides = parser.parse_with_settings(words)
    result = cross_validate(load_recipe(options.recipe, overrides), options.folds, options.root)
    if options.json:
        print(as_json(result, indent=1))
    else:
        print_folds(result)


def cross_validate(recipe: Recipe, n_folds: int, root: Root) -> dict[str, Any]:
    """Train and judge one reward model for each group of labelers. Finished folds are not run again. The numbers are
    also written to ROOT/labeler_folds/RECIPE/KEY."""
    store = open_store(root)
    plans = plan_pipeline(recipe, store)
    plan = next(plan for plan in plans if plan.stage == "reward_model")
    if not plan.config.data or not plan.config.held_out:
        raise ConfigError("labeler-folds needs reward_model.data with named labelers and reward_model.held_out above 0")
    records = load_all(plan.config.data, Comparison, recipe.seed)
    groups = labeler_groups(Counter(record.labeler for record in records if record.labeler is not None), n_folds)
    check_parents(plan, plans, store)
    sft = {role: store.path(key) for role, key in plan.parents.items()} | dict(plan.outside)
    train, held_out = keep_back(records, plan.config.held_out, recipe.seed)
    quiet_libraries()
    home = local_root(root) / "labeler_folds" / recipe.name / plan.key
    folds = []
    for number, group in enumerate(groups, start=1):
        folder = home / f"{number}_of_{n_folds}"
        done = folder / "fold.json"
        if not done.exists():
            print(f"[{number}/{n_folds}] training without {visible(', '.join(group))}", flush=True)
            fold = run_fold(plan, recipe.seed, sft, train, held_out, group, folder)
            done.write_text(json.dumps(fold, indent=1) + "\n")
        folds.append(json.loads(done.read_text()))
    result = {"recipe": recipe.name, "unnamed": sum(r.labeler is None for r in records), "folds": folds}
    for name in PAPER:
        rates = [fold[name]["pair_accuracy"] for fold in folds if fold[name]["n"]]
        if rates:
            mean = mean_with_standard_error(rates)
            error = mean.standard_error if mean.n > 1 else None
            result[name] = {"mean": mean.mean, "standard_error": error, "folds": mean.n}
    (home / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n")
    return result


def labeler_groups(comparisons: Mapping[str, int], n_groups: int) -> list[list[str]]:
    """Split the labelers into groups with about equally many comparisons: busiest first, each to the smallest group."""
    if len(comparisons) < 2:
        found = f"only the labeler '{next(iter(comparisons))}'" if comparisons else "no labeler"
        raise ConfigError(f"reward_model.data names {found}; labeler-folds needs data with a 'labeler' for each row")
    if not 2 <= n_groups <= len(comparisons):
        known = f"{len(comparisons)} labelers ({', '.join(sorted(comparisons)[:8])})"
        raise ConfigError(f"--folds is {n_groups}, but reward_model.data names {known}; set it from 2 to their number")
    groups: list[list[str]] = [[] for _ in range(n_groups)]
    sizes = [0] * n_groups
    for labeler in sorted(comparisons, key=lambda name: (-comparisons[name], name)):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(labeler)
        sizes[smallest] += comparisons[labeler]
    return groups


def run_fold(
    plan: StagePlan,
    seed: int,
    parents: Mapping[str, Path],
    train: Records[Comparison],
    held_out: Records[Comparison],
    group: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """Train on the other groups' comparisons; measure this group's and the others' verdicts on held-out prompts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "train.jsonl.gz"
    write_records(file, (record for record in train if record.labeler not in group and record.labeler is not None))
    config = replace(plan.config, data=[Source(str(file), "records")], held_out=0.0, second_half=False)
    with Tracker(
        folder,
        project="triptych",
        group=plan.key,
        job_type="labeler-folds",
        run_id=folder.name,
        config={},
        wandb_mode="disabled",
    ) as tracker:
        job = Job(folder, parents, tracker, seed)
        reward_model.run(config, job)
    scorer = open_scorer(str(job.output), folder, config.device)
    told: dict[str, Any] = {"labelers": list(group)}
    for name, inside in (("new labelers", True), ("own labelers", False)):
        some = (r for r in held_out if r.labeler is not None and (r.labeler in group) == inside)
        numbers = judge_scores(score_comparisons(scorer, some, batch_size=32).pairs)
        told[name] = {key: numbers[key] for key in KEPT if key in numbers}
    for left in (job.output, folder / "trainer", file):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return told


def print_folds(result: Mapping[str, Any]) -> None:
    table = Table(title=f"{result['recipe']}: accuracy on held-out prompts", title_justify="left")
    for column in ("labelers left out", "new labelers", "pairs", "own labelers", "pairs"):
        table.add_column(column, justify="left" if column == "labelers left out" else "right", overflow="fold")
    for fold in result["folds"]:
        cells = [", ".join(fold["labelers"])]
        for name in PAPER:
            rate = fold[name]["pair_accuracy"]
            cells += ["none" if rate is None else f"{rate:.1%}", str(fold[name]["n"])]
        table.add_row(*cells)
    means = ["mean +- standard error"]
    for name in PAPER:
        mean = result.get(name)
        error = "" if mean is None or mean["standard_error"] is None else f" +- {100 * mean['standard_error']:.1f}"
        means += ["none" if mean is None else f"{100 * mean['mean']:.1f}{error} %", ""]
    table.add_section()
    table.add_row(*means)
    table.add_row("InstructGPT, 6B", PAPER["new labelers"], "", PAPER["own labelers"], "")
    console = screen()
    console.print(table)
    if result["unnamed"]:
        console.print(f"{result['unnamed']} comparisons without a named labeler were left out.")
