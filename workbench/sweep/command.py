"""`triptych sweep RECIPE --over KEY=V1,V2`: run a pipeline under several settings and compare the results in one table.

Each cell of the grid is an ordinary pipeline in the same store, up to the stage that is compared. Published stages are
not run again, stages that cells share run once, and if a cell fails, the others still run.

Writes ROOT/sweeps/NAME/summary.json and table.md.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkpoint_store import CheckpointStore, Root, StoreError, local_root, open_store
from data_schema import DataError
from pipeline.configs import Recipe
from pipeline.plan import STAGES, StagePlan, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import check, run_stages
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import one_line, visible
from pipeline.terminal.failures import known_failure
from stages.errors import ConfigError
from stages.settings import plain
from stages.sft.held_out_losses import read_losses
from workbench.sweep.report import Result, flat_numbers, print_sweep, print_sweep_plan, summarise_sweep, write_sweep

if TYPE_CHECKING:
    from checkpoint_store import Manifest

LONGEST_WORD = 32  # characters for a cell's values in its name, since wandb limits a name's length


class Cell(NamedTuple):
    """One setting with one seed."""

    settings: Mapping[str, str]  # swept key -> its value here
    recipe: Recipe
    plans: tuple[StagePlan, ...]  # up to the stage that is compared

    @property
    def title(self) -> str:
        return ", ".join([*(f"{key}={value}" for key, value in self.settings.items()), f"seed {self.recipe.seed}"])


def command(words: Sequence[str]) -> None:
    """Run `triptych sweep ...`. Raises ConfigError after printing the table if a cell failed."""
    parser = Arguments("sweep", __doc__.partition("\n")[0], recipe_settings=Recipe.__dataclass_fields__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe to run under several settings")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="KEY=V1,V2",
        help="setting and its values, such as sft.template=alpaca,plain; repeat the option for a grid",
    )
    parser.add_argument("--seeds", metavar="N,N", help="run each setting with these seeds (default: the recipe's)")
    parser.add_argument("--stage", default="sft", help="run up to this stage and compare its results (default: sft)")
    parser.add_argument("--name", help="name of the sweep and of its W&B group (default: RECIPE-KEY)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="read FILE for data set NAME")
    parser.add_root()
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    options, overrides = parser.parse_with_settings(words)

    stage = options.stage.replace("-", "_")
    if stage not in STAGES:
        raise ConfigError(f"--stage is '{options.stage}'; it must be one of {', '.join(STAGES)}")
    grid = parse_grid(options.over)
    seeds = parse_seeds(options.seeds)
    copies = dict(pair.split("=", 1) for pair in options.data if "=" in pair)
    if len(copies) < len(options.data):
        raise ConfigError("--data must be NAME=FILE, each name once, such as Anthropic/hh-rlhf=hh.jsonl.gz")
    if options.name is not None and options.name != word(options.name):
        raise ConfigError(f"--name is '{options.name}'; it names a folder: use only letters, digits, '.', '_' and '-'")
    recipes = load_recipes(options.recipe, overrides, copies, grid, seeds)
    base = recipes[0][1].name
    name = options.name or word("-".join([base, *(key.rpartition(".")[2] for key in grid)]))
    store = open_store(options.root)
    cells = plan_cells(recipes, stage, name, store)
    if options.dry_run:
        print_sweep_plan(name, stage, [(cell.title, cell.plans) for cell in cells])
        return
    errors = run_cells(cells, store, options.root)
    results = [read_result(cell, error, store) for cell, error in zip(cells, errors, strict=True)]
    summary = {"sweep": name, "recipe": base, **summarise_sweep(stage, results)}
    folder = write_sweep(local_root(options.root) / "sweeps" / name, summary)
    print_sweep(summary, folder)
    if failed := [cell.title for cell, error in zip(cells, errors, strict=True) if error]:
        raise ConfigError(f"{len(failed)} of {len(cells)} runs failed ({'; '.join(failed)}); see above")


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse ["sft.template=alpaca,plain", ...] to key -> values. Commas inside [...] and {...} belong to a value."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.removeprefix("--").partition("=")
        found = [value.strip() for value in split_outside_brackets(values)]
        if not key or not all(found):
            raise ConfigError(f"--over is '{text}'; it must be KEY=VALUE,VALUE, such as sft.template=alpaca,plain")
        if key in grid or len(set(found)) < len(found):
            raise ConfigError(f"--over {text}: name each key, and each of its values, once")
        grid[key] = found
    return grid


def parse_seeds(text: str | None) -> list[int | None]:
    """Parse "0,1,2"; [None] means the recipe's own seed."""
    if text is None:
        return [None]
    seeds = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", seed) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is '{text}'; it must be different whole numbers, such as 0,1,2")
    return [int(seed) for seed in seeds]


def split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def word(text: str) -> str:
    """Make a text usable in a name: characters that are not allowed become '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "sweep"


def load_recipes(
    path: Path,
    overrides: Sequence[str],
    copies: Mapping[str, str],
    grid: Mapping[str, Sequence[str]],
    seeds: Sequence[int | None],
) -> list[tuple[dict[str, str], Recipe]]:
    """Return (settings, the recipe with them) for every setting and seed; the seeds of a setting are adjacent."""
    recipes = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        for seed in seeds:
            changes = [f"--{key}={value}" for key, value in settings.items()]
            changes += [] if seed is None else [f"--seed={seed}"]
            recipes.append((settings, load_recipe(path, [*overrides, *changes], copies)))
    return recipes


def plan_cells(
    recipes: Sequence[tuple[Mapping[str, str], Recipe]], stage: str, name: str, store: CheckpointStore
) -> list[Cell]:
    """Plan every cell before any runs, so that a mistake in one is raised early."""
    cells: list[Cell] = []
    names: set[str] = set()
    for settings, recipe in recipes:
        told = word("-".join(value.rpartition("/")[2] for value in settings.values()))[:LONGEST_WORD]
        title = word(f"{name}-{told}-{recipe.seed}")
        title = title if title not in names else f"{title}-{len(cells)}"
        names.add(title)
        tracking = replace(recipe.tracking, group=recipe.tracking.group or name)
        recipe = replace(recipe, name=title, tracking=tracking)
        plans = plan_pipeline(recipe, store)
        stages = [plan.stage for plan in plans]
        if stage not in stages:
            raise ConfigError(f"this recipe has no stage '{stage}'; set --stage to one of: {', '.join(stages)}")
        cells.append(Cell(settings, recipe, tuple(plans[: stages.index(stage) + 1])))
    return cells


def run_cells(cells: Sequence[Cell], store: CheckpointStore, root: Root) -> list[str | None]:
    """Run the unpublished stages, cell by cell; return each cell's error message, or None if it succeeded."""
    from policy import ModelError

    errors: list[str | None] = []
    failed: dict[str, str] = {}  # stage key -> error; a stage that failed in one cell is not run again in another
    for number, cell in enumerate(cells, start=1):
        missing = [plan for plan in cell.plans if not store.exists(plan.key)]
        error = next((failed[plan.key] for plan in missing if plan.key in failed), None)
        if missing:
            print(f"({number}/{len(cells)}) {visible(cell.title)}", flush=True)
        if error is None:
            try:
                to_run = {plan.stage for plan in missing}
                check(cell.recipe, cell.plans, to_run, store)
                run_stages(cell.recipe, cell.plans, to_run, store, root)
            except (ConfigError, DataError, ModelError, StoreError) as problem:
                error = " ".join(str(problem).split())
            except Exception as problem:  # other cells may still succeed
                if (error := known_failure(problem)) is None:
                    traceback.print_exc()
                    error = f"a bug in triptych, see above ({' '.join(str(problem).split())})"
            if error is not None:
                undone = [plan.key for plan in missing if not store.exists(plan.key)]
                failed[undone[0] if undone else cell.plans[-1].key] = error
        if error is not None:
            print(f"({number}/{len(cells)}) failed: {one_line(str(error))}", file=sys.stderr, flush=True)
        errors.append(error)
        gc.collect()  # a trainer and its model refer to each other
    return errors


def read_result(cell: Cell, error: str | None, store: CheckpointStore) -> Result:
    last = cell.plans[-1]
    if error is not None:
        return Result(cell.settings, cell.recipe.seed, last.key, error, {}, {}, "")
    manifest: Manifest = store.manifest(last.key)
    numbers = flat_numbers(manifest.metrics)
    too_long = [row.get("dropped", {}).get("too long", 0) for row in manifest.data.values()]
    losses = read_losses(store.path(last.key)) if last.stage == "sft" else {}
    models = {**last.parents, **last.outside}
    scored_by = {role: str(model) for role, model in models.items() if role not in ("sft", "ppo")}
    return Result(
        cell.settings,
        cell.recipe.seed,
        last.key,
        None,
        {**numbers, "too_long": float(sum(too_long))},
        losses,
        json.dumps([scored_by, plain(getattr(last.config, "rewards", None))], sort_keys=True),
    )
