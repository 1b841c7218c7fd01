"""`triptych replay MODEL --step N`: repeat a recorded PPO iteration bit for bit and show its tokens' numbers.

The run saved the inputs of each update, so replay samples and scores nothing: it repeats the updates up to iteration N,
from the SFT and reward models or from the nearest snapshot. It compares each repeated iteration with the numbers that
the run recorded, and stops with exit code 1 at the first difference.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint_store import Root, local_root, open_store
from data_schema import DataError
from pipeline.terminal.arguments import Arguments, count
from pipeline.terminal.console import as_json as json_line
from stages.errors import ConfigError
from workbench.curves.record import read_rows

if TYPE_CHECKING:
    from workbench.replay.view import Number, Replay

ROLLOUTS = "rollouts"
RUN_FIELDS = {"config": dict, "parents": dict, "seed": int, "device": str, "threads": int, "libraries": dict}
NO_NUMBERS: dict[str, float] = {}


def command(words: Sequence[str]) -> None:
    """Run `triptych replay MODEL --step N`. The exit code is 1 if a number differs."""
    parser = Arguments("replay", __doc__)
    parser.add_argument(
        "run", metavar="MODEL", help="PPO's name, such as quickstart/ppo, its key, or its run directory"
    )
    parser.add_root()
    parser.add_argument("--step", type=count, required=True, metavar="N", help="iteration to repeat, counted from 1")
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
    if options.episodes < 0:
        raise ConfigError(f"--episodes is {options.episodes}; it must be at least 0")
    options.run = find_run(options.run, options.root)
    run = read_run(options.run)
    check_step(options.run, options.step)

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
        print(json_line(as_json(options, record, found, changed, episodes)))
    else:
        print_replay(options, record, found, changed, episodes)
    if found is not None and found.difference is not None:
        sys.exit(1)


def find_run(named: str, root: Root) -> Path:
    """The run directory of a PPO stage. Raises ConfigError if there is none, StoreError for an unknown name."""
    directory = Path(named)
    if not (directory / ROLLOUTS).is_dir():
        store = open_store(root)
        key = directory.name if directory.is_dir() and not store.exists(directory.name) else store.resolve(named)
        directory = local_root(root) / "runs" / key
    if not (directory / ROLLOUTS).is_dir():
        raise ConfigError(
            f"{named} has no recorded iterations in {directory / ROLLOUTS}; give a PPO stage: its name, such as "
            "quickstart/ppo, or the run directory that a stopped run names"
        )
    return directory


def read_run(directory: Path) -> dict[str, Any]:
    """Read the run's description, run.json. Raises ConfigError if it is missing or damaged."""
    path = directory / ROLLOUTS / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or any(type(run.get(name)) is not kind for name, kind in RUN_FIELDS.items()):
        raise ConfigError(
            f"{path} cannot be read; give a PPO stage's name, such as quickstart/ppo, or its run directory; if the "
            "file is damaged, run ppo again with --force"
        )
    return run


def check_step(directory: Path, step: int) -> None:
    """Raises ConfigError, naming the recorded iterations, if `step` is not one of them."""
    names = [path.stem for path in (directory / ROLLOUTS).glob("*.safetensors")]
    steps = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    if step not in steps:
        there = f"recorded are {ranges(steps)}" if steps else "none is recorded"
        raise ConfigError(f"{directory} has no iteration {step}; {there}; ppo.keep_rollouts: false keeps only the last")


def ranges(steps: Sequence[int]) -> str:
    """Sorted whole numbers in words: 1 to 5, 7, 9 to 10."""
    first = [step for step in steps if step - 1 not in steps]
    last = [step for step in steps if step + 1 not in steps]
    return ", ".join(f"{a} to {b}" if a < b else str(a) for a, b in zip(first, last, strict=True))


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

    from policy.errors import ModelError
    from stages.ppo.learner import begin
    from stages.ppo.record import Steps, read_record, read_snapshot, record_path, snapshot_path
    from stages.ppo.stage import improve
    from stages.ppo.stop import check_experience
    from stages.progress import progress
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
    for iteration in progress(range(began_after + 1, step + 1), desc="replay", unit="iteration"):
        record = read_record(record_path(directory, iteration), device)
        learner.fits.update.rows = record.rows_at_once  # the order of additions depends on it
        learner.fits.trunk.rows = record.rows_in_trunk
        steps: Steps = []
        text = iter(record.text) if config.mixes_text else None
        stopped = ""
        try:
            check_experience(record.experience)
            experience = learner.with_trunk_states(record.experience, config, directory)
            metrics = improve(learner, experience, record.kl_coef, text, config, iter(record.orders), iteration, steps)
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
    for row in read_rows(path) if path.is_file() else []:
        try:
            found.setdefault(row["step"], {}).update({name: float(x) for name, x in row.items() if name != "step"})
        except (TypeError, ValueError):
            raise DataError(f"{path} has a value that is no number at step {row['step']}; restore the file") from None
    return found


def read_config(values: Mapping[str, Any]) -> Any:
    """Rebuild the PpoConfig that `plain` turned into a mapping."""
    from pipeline.build import build
    from stages.ppo.settings import PpoConfig

    return build(PpoConfig, values, "ppo")


def changed_libraries(recorded: Mapping[str, str]) -> list[str]:
    """List the libraries whose version differs from the run's, which can change results."""
    from checkpoint_store.manifest import library_versions

    now = library_versions()
    return [f"{name} {version} -> {now.get(name)}" for name, version in recorded.items() if now.get(name) != version]
