"""`triptych replay RUN_DIR --step N`: an iteration of PPO once more from its record, bit for bit, token by token.

A recorded update needs no sampling and no reward, so the weights of iteration N come back by repeating the updates
before it, from the stage's parents or from the nearest snapshot. Each repeated iteration is compared with what the run
measured; the first number that differs ends the replay, with exit code 1.
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
    """`triptych replay RUN_DIR --step N`. Exit code 1 where a loss differs."""
    parser = argparse.ArgumentParser(prog="triptych replay", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a PPO stage's run directory, such as out/runs/KEY")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="iteration, counted from 1")
    parser.add_argument("--episodes", type=int, default=3, metavar="N", help="show so many (default: 3; 0: none)")
    parser.add_argument(
        "--pick",
        choices=("first", "best", "worst", "kl"),
        default="first",
        help="which: in order, by score, or by KL (default: first); of a stopped iteration the minibatch at fault",
    )
    parser.add_argument("--show-only", action="store_true", help="compute nothing, show the record alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(words)
    if options.step < 1 or options.episodes < 0:
        raise ConfigError(f"--step is {options.step}, --episodes {options.episodes}; they count from 1 and from 0")
    run = read_run(options.run)

    import torch  # the mistakes above are told at once

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
    """What the run left about itself. Raises ConfigError for a directory that is none of PPO's."""
    path = directory / "rollouts" / "run.json"
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); give a PPO stage's run directory: out/runs/KEY, with the "
            "key from `triptych log RECIPE/ppo`, or from the line a stopped run ends with"
        ) from error
    return run


def find_parents(directory: Path, parents: Mapping[str, str]) -> dict[str, Path]:
    """The checkpoints the stage read, where they were, or in the store of the root that the run directory lies in."""
    found = {}
    for role, named in parents.items():
        path = Path(named)
        stores = (folder / "store" / "checkpoints" / path.name for folder in directory.absolute().parents)
        place = next((each for each in (path, *stores) if each.is_dir()), None)
        if place is None:
            raise ConfigError(f"the run's {role} checkpoint {path} is gone; put it back, or run its stage again")
        found[role] = place
    return found


def replay(directory: Path, run: Mapping[str, Any], parents: Mapping[str, Path], step: int) -> Replay:
    """Repeat the updates up to that of iteration `step`, or up to the first number that differs."""
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
        raise ConfigError("the run was on a GPU and torch sees none here; bits come back on the same machine alone")
    torch.set_num_threads(run["threads"])  # sums are cut into as many parts
    learner = begin(config, parents, run["seed"], device)
    began_after = max((i for i in range(1, step) if snapshot_path(directory, i).is_file()), default=0)
    if began_after:
        read_snapshot(snapshot_path(directory, began_after), learner.optimizers, learner.balance, device)

    logged = read_metrics(directory / "metrics.jsonl")
    compared, metrics = 0, {}
    for iteration in tqdm(range(began_after + 1, step + 1), desc="replay", unit="iteration", file=sys.stderr):
        record = read_record(record_path(directory, iteration), device)
        learner.fits.update.rows = record.rows_at_once  # sums are cut into as many parts
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
        except StopIteration:  # the run stopped before it drew any more
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
    """(name, recorded, replayed) of all that is replayed, or of all that is recorded where nothing is."""
    for name in replayed or recorded:
        yield name, recorded.get(name), replayed.get(name)


def same(one: Number, other: Number) -> bool:
    """Equal bit for bit; NaN equals itself (the explained variance, where all returns are one number)."""
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return one == other or both_nan


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Step -> its numbers. What is not finite stands there as a text; a line that a kill cut short is left out."""
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []:
        if line.endswith("\n"):
            row = json.loads(line)
            found.setdefault(row["step"], {}).update({name: float(x) for name, x in row.items() if name != "step"})
    return found


def read_config(values: Mapping[str, Any]) -> Any:
    """The PpoConfig that `plain` took apart."""
    from jsonargparse import ArgumentParser

    from stages.ppo.settings import PpoConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PpoConfig, "ppo")
    return parser.instantiate(parser.parse_object({"ppo": dict(values)})).ppo


def changed_libraries(recorded: Mapping[str, str]) -> list[str]:
    """Libraries that are not of the run's version any more: a reason for other bits."""
    from checkpoint_store.manifest import library_versions

    now = library_versions()
    return [f"{name} {version} -> {now.get(name)}" for name, version in recorded.items() if now.get(name) != version]
