"""The command line: `triptych run RECIPE` chains the stages, `triptych ppo --config RECIPE` runs one, `triptych log
NAME` tells where a checkpoint comes from. Nothing heavy is imported before it is known what to do.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

DESCRIPTION = """The InstructGPT recipe: supervised tuning, reward model, PPO.

commands:
  run RECIPE                 all stages of a recipe; finished ones are skipped
  sft, comparisons, reward-model, select, ppo, evaluate  --config RECIPE
                             one stage of a recipe
  sweep RECIPE --over KEY=V1,V2
                             a stage under several settings, templates for instance, in one table
  judge MODEL [--data FILE]  how far a reward model can be trusted, on one page (also: evaluate MODEL)
  score MODEL FILE           a reward model's scores for the rows of a file
  labeler-folds RECIPE       a reward model's accuracy on labelers it was not trained on
  evaluate-tasks --models NAME=MODEL ... --tasks SOURCE ...
                             models beside each other on held-out tasks, zero- or few-shot
  plan RECIPE                what PPO will need: memory by role and phase, and time, before anything is loaded
  data inspect SOURCE        what a data set holds and what is wrong with it, loss mask and leaks included
  replay RUN_DIR --step N    an iteration of PPO once more: the same losses, and what each token was worth
  log NAME                   where a checkpoint comes from: base -> SFT -> reward model -> policy
  verify [NAME]              check the hashes of one checkpoint, or of all

Settings of a recipe are overridden by dotted options: --ppo.kl_coef 0.05 --sft.data my.jsonl.
'triptych run --help' lists them all."""
STAGE_COMMANDS = {
    "sft": "sft",
    "comparisons": "comparisons",
    "reward-model": "reward_model",
    "select": "select",
    "ppo": "ppo",
    "evaluate": "evaluate",
}
# Commands that live in a module of their own, as `command(words)`.
TOOLS: dict[str, str] = {
    "sweep": "workbench.sweep.command",
    "data": "workbench.inspect.command",
    "judge": "workbench.judge.command",
    "score": "workbench.judge.score",
    "labeler-folds": "workbench.judge.labeler_folds",
    "evaluate-tasks": "workbench.tasks.command",
    "plan": "workbench.plan.command",
    "replay": "workbench.replay.command",
}
DEFAULT_ROOT = Path("out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 something the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: triptych COMMAND ...\n\n" + DESCRIPTION)
        return 0 if words else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("triptych").setLevel(logging.INFO)
    # The default action would end the process at once: what wandb holds would be lost, the run never closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command, rest = words[0], words[1:]
    if command == "evaluate" and rest and not rest[0].startswith("-"):
        command = "judge"  # a stage takes options only, so this names a reward model
    if command == "run" or command in STAGE_COMMANDS:
        return guarded(partial(run_recipe, command, rest))
    if command in ("log", "verify"):
        return guarded(partial(look_into_store, command, rest))
    if command in TOOLS:
        return guarded(lambda: import_module(TOOLS[command]).command(rest))
    known = ", ".join(["run", *STAGE_COMMANDS, "log", "verify", *TOOLS])
    print(f"triptych: no command '{command}'; there are: {known}", file=sys.stderr)
    return 2


def guarded(action: Callable[[], None]) -> int:
    """Run it; what the user can mend becomes one line and exit code 2."""
    from checkpoint_store import StoreError
    from data_schema import DataError
    from policy import ModelError
    from stages.errors import ConfigError

    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno is None:  # a library's own
            raise
        place = "" if error.filename is None else f"'{error.filename}': "
        print(f"triptych: {place}{error.strerror}; check the path, its permissions and the disk", file=sys.stderr)
        return 2
    except (ConfigError, DataError, ModelError, StoreError) as error:
        print(f"triptych: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triptych: interrupted; finished stages stay, the next call goes on from there", file=sys.stderr)
        return 130
    return 0


def run_recipe(command: str, words: Sequence[str]) -> None:
    """`run RECIPE [options] [overrides]`, or `STAGE --config RECIPE [options] [overrides]`."""
    parser = argparse.ArgumentParser(prog=f"triptych {command}", add_help=False, allow_abbrev=False)
    if command == "run":
        parser.add_argument("recipe", nargs="?", type=Path)
        parser.add_argument(
            "--from", dest="first", metavar="STAGE", help="begin at this stage; earlier ones must be published"
        )
        parser.add_argument("--only", metavar="STAGE", help="this stage alone")
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="the recipe")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FILE", help="read FILE for data set NAME; repeatable"
    )
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="where checkpoints and runs are kept (default: out)"
    )
    parser.add_argument("--force", action="store_true", help="redo the selected stages even if they are published")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and why")
    parser.add_argument("--print_config", action="store_true", help="print the recipe with every default filled in")
    parser.add_argument("-h", "--help", action="store_true", help="this help, with every setting of a recipe")
    options, overrides = parser.parse_known_args(words)

    from pipeline.recipe import as_yaml, load_recipe, settings_help
    from stages.errors import ConfigError

    if options.help:
        print(parser.format_help())
        print(settings_help())
        return
    path = getattr(options, "recipe", None) or options.config
    if path is None:
        raise ConfigError(f"name a recipe: triptych {command} {'RECIPE' if command == 'run' else '--config RECIPE'}")
    copies = {}
    for pair in options.data:
        name, separator, file = pair.partition("=")
        if not separator:
            raise ConfigError(f"--data is '{pair}'; it must be NAME=FILE, such as Anthropic/hh-rlhf=hh.jsonl.gz")
        copies[name] = file
    recipe = load_recipe(path, overrides, copies)
    if options.print_config:
        print(as_yaml(recipe), end="")
        return

    from pipeline.plan import Selection
    from pipeline.runner import run_pipeline

    stage = STAGE_COMMANDS.get(command)
    names = {name.replace("_", "-"): name for name in STAGE_COMMANDS.values()}
    first, only = (
        names.get(name, name) if name else None
        for name in (getattr(options, "first", None), getattr(options, "only", None))
    )
    run_pipeline(recipe, options.root, Selection(first, stage or only, options.force), options.dry_run)


def look_into_store(command: str, words: Sequence[str]) -> None:
    """`log NAME` and `verify [NAME]`."""
    parser = argparse.ArgumentParser(prog=f"triptych {command}", allow_abbrev=False)
    parser.add_argument("name", nargs=None if command == "log" else "?", help="a name such as quickstart/ppo, or a key")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--verbose", action="store_true", help="with every metric and the resolved config")
    options = parser.parse_args(words)

    from checkpoint_store import CheckpointStore, format_lineage

    store = CheckpointStore(options.root / "store")
    if command == "log":
        print(format_lineage(store, options.name, options.verbose), end="")
        return
    for key in [store.resolve(options.name)] if options.name else store.keys():
        store.verify(key)
        print(f"{key} {store.manifest(key).name}: every file as it was published")


def stage_script(stage: str) -> NoReturn:
    """What scripts/STAGE.py calls."""
    sys.exit(main([stage, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
