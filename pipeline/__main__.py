"""The command line: `triptych run RECIPE` runs all stages, `triptych ppo --config RECIPE` runs one, and so on.

Heavy libraries are imported only once the command is known.
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

DESCRIPTION = """InstructGPT's recipe: supervised tuning (SFT), a reward model, PPO.

run a recipe:
  run RECIPE                 run all stages; skip those that are done
  sft | comparisons | reward-model | select | ppo | evaluate  --config RECIPE
                             run one stage; '--help' lists its settings
  sweep RECIPE --over KEY=V1,V2
                             run a stage under several settings and compare them in one table
before a run:
  data inspect SOURCE        show what a data set contains, its problems, and which tokens are trained
  plan RECIPE                predict PPO's memory use and time per iteration
after a run:
  judge MODEL [--data FILE]  report how far a reward model can be trusted (also: evaluate MODEL)
  score MODEL FILE           score the answers in a file with a reward model
  labeler-folds RECIPE       measure a reward model on labelers that it was not trained on
  evaluate-tasks --models NAME=MODEL ... --tasks SOURCE ...
                             compare models on held-out tasks, zero- or few-shot
  replay RUN_DIR --step N    repeat one PPO iteration exactly and show each token's reward and advantage
  log NAME                   show a checkpoint's history: base model, data, settings, metrics
  verify [NAME]              check the hashes of one checkpoint, or of all

Override a recipe's settings with dotted options: --ppo.kl_coef 0.05 --sft.data my.jsonl.
'triptych run --help' lists all settings, 'triptych ppo --help' those of one stage."""
STAGE_COMMANDS = {
    "sft": "sft",
    "comparisons": "comparisons",
    "reward-model": "reward_model",
    "select": "select",
    "ppo": "ppo",
    "evaluate": "evaluate",
}
# Tools: command -> module with a function `command(words)`. Names, not imports: no package may import the workbench.
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
    """Run one command line. Returns the exit code: 0 for success, 2 for a mistake that the user can fix."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: triptych COMMAND ...\n\n" + DESCRIPTION)
        return 0 if words else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("triptych").setLevel(logging.INFO)
    # By default SIGTERM ends the process immediately: wandb would lose buffered data and never close its run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command, rest = words[0], words[1:]
    if command == "evaluate" and rest and not rest[0].startswith("-"):
        command = "judge"  # the stage takes options only, so this is a reward model
    if command == "run" or command in STAGE_COMMANDS:
        return guarded(partial(run_recipe, command, rest))
    if command in ("log", "verify"):
        return guarded(partial(look_into_store, command, rest))
    if command in TOOLS:
        return guarded(lambda: import_module(TOOLS[command]).command(rest))
    known = ", ".join(["run", *STAGE_COMMANDS, "log", "verify", *TOOLS])
    print(f"triptych: unknown command '{command}'; the commands are: {known}", file=sys.stderr)
    return 2


def guarded(action: Callable[[], None]) -> int:
    """Run `action`. Errors that the user can fix become one line on stderr and exit code 2."""
    from checkpoint_store import StoreError
    from data_schema import DataError
    from policy import ModelError
    from stages.errors import ConfigError

    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno is None:  # raised by a library without a system error
            raise
        place = "" if error.filename is None else f"'{error.filename}': "
        print(f"triptych: {place}{error.strerror}; check the path, its permissions and the disk", file=sys.stderr)
        return 2
    except (ConfigError, DataError, ModelError, StoreError) as error:
        print(f"triptych: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triptych: interrupted; finished stages are kept, and the next run continues after them", file=sys.stderr)
        return 130
    return 0


def run_recipe(command: str, words: Sequence[str]) -> None:
    """`run RECIPE [options] [overrides]`, or `STAGE --config RECIPE [options] [overrides]`."""
    parser = argparse.ArgumentParser(prog=f"triptych {command}", add_help=False, allow_abbrev=False)
    if command == "run":
        parser.add_argument("recipe", nargs="?", type=Path, help="recipe file")
        parser.add_argument(
            "--from", dest="first", metavar="STAGE", help="start at this stage; earlier stages must be done already"
        )
        parser.add_argument("--only", metavar="STAGE", help="run only this stage")
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="recipe file")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="read FILE in place of data set NAME (repeatable)",
    )
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder for checkpoints and runs (default: out)"
    )
    parser.add_argument("--force", action="store_true", help="run the selected stages even if they are done")
    parser.add_argument("--dry-run", action="store_true", help="print which stages would run, and why")
    parser.add_argument("--print_config", action="store_true", help="print the recipe with all defaults")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with the recipe's settings")
    options, overrides = parser.parse_known_args(words)

    from pipeline.recipe import as_yaml, load_recipe
    from stages.errors import ConfigError

    if options.help:
        from pipeline.settings_help import settings_help

        print(parser.format_help() + "\n" + settings_help(STAGE_COMMANDS.get(command)))
        return
    path = getattr(options, "recipe", None) or options.config
    if path is None:
        raise ConfigError(
            f"no recipe is given; write: triptych {command} {'RECIPE' if command == 'run' else '--config RECIPE'}"
        )
    copies = {}
    for pair in options.data:
        name, separator, file = pair.partition("=")
        if not separator:
            raise ConfigError(f"--data is '{pair}'; it must be NAME=FILE, for example Anthropic/hh-rlhf=hh.jsonl.gz")
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
    about = "Show a checkpoint's history." if command == "log" else "Check the hashes of a checkpoint, or of all."
    parser = argparse.ArgumentParser(prog=f"triptych {command}", description=about, allow_abbrev=False)
    name = "checkpoint: a name such as quickstart/ppo, or a key"
    parser.add_argument("name", nargs=None if command == "log" else "?", help=name)
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder for checkpoints and runs (default: out)"
    )
    if command == "log":
        parser.add_argument("--verbose", action="store_true", help="show every metric and setting")
    options = parser.parse_args(words)

    from checkpoint_store import CheckpointStore, format_lineage

    store = CheckpointStore(options.root / "store")
    if command == "log":
        print(format_lineage(store, options.name, options.verbose), end="")
        return
    for key in [store.resolve(options.name)] if options.name else store.keys():
        store.verify(key)
        print(f"{key} {store.manifest(key).name}: all files match their published hashes")


def stage_script(stage: str) -> NoReturn:
    """Entry point of scripts/STAGE.py."""
    sys.exit(main([stage, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
