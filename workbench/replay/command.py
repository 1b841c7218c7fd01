"""`triptych replay RUN_DIR --step N`: repeat a recorded PPO iteration bit for bit and show its tokens' numbers.

The run saved the inputs of each update, so replay samples and scores nothing: it repeats the updates up to iteration N,
from the SFT and reward models or from the nearest snapshot. It compares each repeated iteration with the numbers that
the run recorded, and stops with exit code 1 at the first difference.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from workbench.replay.view import Number, Replay

NO_NUMBERS: dict[str, float] = {}


def command(words: Sequence[str]) -> None:
    """Run `triptych replay RUN_DIR --step N`. The exit code is 1 if a number differs."""
    parser = argparse.ArgumentParser(prog="triptych replay", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of a PPO stage, such as out/runs/KEY")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="iteration to repeat, counted from 1")
    parser.add_argument("--episodes", type=int, default=3, metavar="N", help="show N episodes (default: 3; 0: none)")
    parser.add_argument(
        "--pick",
        choices=("first", "best", "worst", "kl"),
        default="first",
        help="order of episodes: as sampled, by score, or by KL (default: first); those that stopped the run are first",
    )
    parser.add_argument("--show-only", action="store_true", help="only show the recorded numbers; repeat nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(words)
    if options.step < 1 or options.episodes < 0:
        raise ConfigError(f"--step is {options.step} (minimum 1), --episodes is {options.episodes} (minimum 0)")
    run = read_run(options.run)

    import torch  # imported late, so that the errors above appear without delay

    from pipeline.runner import quiet_libraries
    from policy.language_model import load_tokenizer
    from stages.ppo.record import read_record, record_path
    from workbench.replay.view import as_json, episodes_of, print_replay

    quiet_libraries()
    parents = find_parents(options.run, run["parents"])
    record = read_record(record_path(options.run, options.step), torch.device("cpu"))
    found = None if options.show_only else replay(options.run, run, parents, options.step)
    episodes = episodes_of(record, load_tokenizer(parents["sft"]), options.pick, options.episodes)
    changed = changed_libraries(run["libraries"])
    if options.json:
        print(json.dumps(as_json(options, record, found, changed, episodes), ensure_ascii=False))
    else:
        print_replay(options, record, found, changed, episodes)
    if found is not None and found.difference is not None:
        sys.exit(1)


def read_run(directory: Path) -> dict[str, Any]:
    """Read the run's description, run.json. Raises ConfigError if the directory is not of a PPO stage."""
    path = directory / "rollouts" / "run.json"
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); give a PPO stage's run directory: out/runs/KEY, with the "
            "key from `triptych log RECIPE/ppo` or from the error message of a stopped run"
        ) from error
    return run


def find_parents(directory: Path, parents: Mapping[str, str]) -> dict[str, Path]:
    """Return the stage's parent checkpoints: at their recorded paths, or in the store of the run's root."""
    found = {}
    for role, named in parents.items():
        path = Path(named)
        stores = (folder / "store" / "checkpoints" / path.name for folder in directory.absolute().parents)
        place = next((each for each in (path, *stores) if each.is_dir()), None)
        if place is None:
            raise ConfigError(f"the run's {role} checkpoint {path} is missing; restore it, or run its stage again")
        found[role] = place
    return found


def replay(directory: Path, run: Mapping[str, Any], parents: Mapping[str, Path], step: int) -> Replay:
    """Repeat the updates up to iteration `step`, or up to the first number that differs."""
    import torch
    from tqdm import tqdm

    from policy.errors import ModelError
    from stages.ppo.learner import begin
    from stages.ppo.record import Steps, read_record, read_snapshot, record_path, snapshot_path
    from stages.ppo.stage import improve
    from stages.ppo.stop import check_experience
    from workbench.replay.view import Difference, Replay

    config = read_config(run["config"])
    device = torch.device(run["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("the run was on a GPU, but torch finds none here; replay it on the machine that ran it")
    torch.set_num_threads(run["threads"])  # the order of additions depends on it
    learner = begin(config, parents, run["seed"], device)
    began_after = max((i for i in range(1, step) if snapshot_path(directory, i).is_file()), default=0)
    if began_after:
        read_snapshot(snapshot_path(directory, began_after), learner.optimizers, learner.balance, device)

    logged = read_metrics(directory / "metrics.jsonl")
    compared, metrics = 0, {}
    for iteration in tqdm(range(began_after + 1, step + 1), desc="replay", unit="iteration", file=sys.stderr):
        record = read_record(record_path(directory, iteration), device)
        learner.fits.update.rows = record.rows_at_once  # the order of additions depends on it
        steps: Steps = []
        text = iter(record.text) if config.mixes_text else None
        stopped = ""
        try:
            check_experience(record.experience)
            metrics = improve(
                learner, record.experience, record.kl_coef, text, config, iter(record.orders), iteration, steps
            )
        except ModelError as error:
            stopped, metrics = str(error), {}
        except StopIteration:  # the run stopped before it used more orders or text
            metrics = {}
        pairs = [
            *(
                (number, *pair)
                for number, rows in enumerate(zip_longest(record.steps, steps, fillvalue=NO_NUMBERS), start=1)
                for pair in by_name(*rows)
            ),
            (len(steps) + 1, "stop", record.stopped, stopped),
            *((None, *pair) for pair in (by_name(logged[iteration], metrics) if iteration in logged else ())),
        ]
        for minibatch, name, recorded, replayed in pairs:
            if not same(recorded, replayed):
                return Replay(
                    began_after, compared, Difference(iteration, minibatch, name, recorded, replayed), metrics
                )
            compared += 1
    return Replay(began_after, compared, None, metrics)


def by_name(
    recorded: Mapping[str, float], replayed: Mapping[str, float]
) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield (name, recorded, replayed) for all replayed numbers, or for all recorded ones if none were replayed."""
    for name in replayed or recorded:
        yield name, recorded.get(name), replayed.get(name)


def same(one: Number, other: Number) -> bool:
    """Whether two numbers are equal bit for bit. NaN equals NaN (explained variance if all returns are equal)."""
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return one == other or both_nan


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Return step -> its metrics. Non-finite numbers are strings in the file; an incomplete line is skipped."""
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []:
        if line.endswith("\n"):
            row = json.loads(line)
            found.setdefault(row["step"], {}).update({name: float(x) for name, x in row.items() if name != "step"})
    return found


def read_config(values: Mapping[str, Any]) -> Any:
    """Rebuild the PpoConfig that `plain` turned into a mapping."""
    from jsonargparse import ArgumentParser

    from stages.ppo.settings import PpoConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PpoConfig, "ppo")
    return parser.instantiate(parser.parse_object({"ppo": dict(values)})).ppo


def changed_libraries(recorded: Mapping[str, str]) -> list[str]:
    """List the libraries whose version differs from the run's, which can change results."""
    from checkpoint_store.manifest import library_versions

    now = library_versions()
    return [f"{name} {version} -> {now.get(name)}" for name, version in recorded.items() if now.get(name) != version]
