"""The command line: `triptych run RECIPE` runs all stages, `triptych ppo --config RECIPE` runs one, and so on.

Heavy libraries are imported only once the command is known.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from pipeline.terminal.arguments import Arguments, did_you_mean
from pipeline.terminal.console import PlainLines
from pipeline.terminal.failures import guarded

DESCRIPTION = """InstructGPT's recipe: supervised tuning (SFT), a reward model, PPO.

run a recipe:
  run RECIPE                 run all stages; skip those that are done
  sft | comparisons | reward-model | select | ppo | evaluate  --config RECIPE
                             run one stage; '--help' lists its settings
  sweep RECIPE --over KEY=V1,V2
                             run a stage under several settings and compare them in one table
before a run:
  data inspect SOURCE        show what a data set contains, its problems, and which tokens are trained
  check MODEL                show how a model is read, what it lacks, and whether it can be used
  plan RECIPE                predict PPO's memory use and time per iteration
after a run:
  chat MODEL                 talk to a policy
  curves MODEL ...           show a run's curves, in the terminal or as a picture
  replay MODEL --step N      repeat one PPO iteration exactly and show each token's reward and advantage
  judge MODEL [--data FILE]  report how far a reward model can be trusted
  score MODEL FILE           score the answers in a file with a reward model
  labeler-folds RECIPE       measure a reward model on labelers that it was not trained on
  evaluate-tasks --models NAME=MODEL ... --tasks SOURCE ...
                             compare models on held-out tasks, zero- or few-shot
checkpoints:
  list                       list all checkpoints with their main numbers
  show MODEL                 show one checkpoint: numbers, changed settings, data, parents, folder
  log MODEL                  show a checkpoint's whole history, from the base model on
  diff MODEL MODEL           show what differs between two checkpoints
  verify [MODEL]             check the hashes of one checkpoint, or of all
  rm MODEL                   delete a checkpoint

MODEL is a name such as quickstart/ppo, a key or its first digits, or a folder.
Override a recipe's settings with dotted options: --ppo.kl_coef 0.05 --sft.data my.jsonl.
'triptych help COMMAND' shows a command's options, 'triptych run --help' all settings, 'triptych ppo --help' those of
one stage, 'triptych --version' the versions of triptych and its libraries."""
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
    "check": "workbench.check.command",
    "plan": "workbench.plan.command",
    "chat": "workbench.chat.command",
    "curves": "workbench.curves.command",
    "replay": "workbench.replay.command",
    "judge": "workbench.judge.command",
    "score": "workbench.judge.score",
    "labeler-folds": "workbench.judge.labeler_folds",
    "evaluate-tasks": "workbench.tasks.command",
    "list": "workbench.store.listing",
    "show": "workbench.store.show",
    "log": "workbench.store.log",
    "diff": "workbench.store.diff",
    "verify": "workbench.store.verify",
    "rm": "workbench.store.rm",
}
COMMANDS = ("run", *STAGE_COMMANDS, *TOOLS, "help")
# What people type for a command that has another name here.
OTHER_NAMES = {
    "ls": "list",
    "runs": "list",
    "checkpoints": "list",
    "delete": "rm",
    "remove": "rm",
    "compare": "diff",
    "info": "show",
    "history": "log",
    "train": "run",
    "generate": "chat",
    "infer": "chat",
    "plot": "curves",
    "inspect": "data inspect",
    "doctor": "data inspect",
    "preprocess": "run RECIPE --dry-run",
    "resume": "run",
    "status": "list",
    "env": "--version",
    "eval": "evaluate",
    "rm-model": "reward-model",
    "reward": "reward-model",
    "version": "--version",
}
NO_COMMANDS = ("serve", "export", "push", "upload", "publish", "merge", "deploy", "quantize")  # of a plain model folder
RECIPE_ENDINGS = (".yaml", ".yml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 for success, 2 for a mistake that the user can fix."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal or file that cannot show a character shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainLines("%(message)s"))
    logging.getLogger("triptych").setLevel(logging.INFO)
    # By default SIGTERM ends the process immediately: wandb would lose buffered data and never close its run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return guarded(partial(dispatch, words))


def dispatch(words: Sequence[str]) -> None:
    """Call the command that the first word names, with the others. Raises ConfigError if there is none."""
    first = words[0] if words else ""
    rest = list(words[1:])
    if first == "help":
        first, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if first in ("", "-h", "--help"):
        print("usage: triptych COMMAND ...\n\n" + DESCRIPTION)
        sys.exit(0 if words else 2)
    if first in ("-V", "--version"):
        print(versions())
        return
    command = first.replace("_", "-")
    if command == "run" or command in STAGE_COMMANDS:
        run_recipe(command, rest)
    elif command in TOOLS:
        import_module(TOOLS[command]).command(rest)
    else:
        raise unknown_command(first)


def unknown_command(word: str) -> Exception:
    from stages.errors import ConfigError

    if word.endswith(RECIPE_ENDINGS):
        return ConfigError(f"'{word}' is a recipe; to run it, write: triptych run {word}")
    if word.startswith("-"):
        near = did_you_mean(word, ("--help", "--version")) or "; options come after the command"
        return ConfigError(f"unknown option {word}{near}")
    if word in NO_COMMANDS:
        return ConfigError(
            f"there is no command '{word}': a checkpoint is a plain model folder, which 'triptych show NAME' prints; "
            "docs/using_the_model.md shows how to serve, copy and publish it"
        )
    near = f"; did you mean {OTHER_NAMES[word]}?" if word in OTHER_NAMES else did_you_mean(word, COMMANDS)
    return ConfigError(f"unknown command '{word}'{near or ';'} the commands are: {', '.join(COMMANDS)}")


def versions() -> str:
    """The versions of triptych, of its code, of Python and of the libraries that decide a result."""
    from checkpoint_store import code_state
    from checkpoint_store.manifest import library_versions

    found = library_versions()
    state = code_state(Path(__file__).parent.parent)
    changed = f", with uncommitted changes ({state['dirty']})" if state["dirty"] else ""
    code = "installed package" if str(state["commit"]).startswith("triptych") else f"commit {state['commit']}{changed}"
    python = ".".join(map(str, sys.version_info[:3]))
    libraries = ", ".join(f"{name} {version}" for name, version in found.items() if name != "triptych")
    return f"triptych {found.get('triptych', 'not installed')} ({code})\nPython {python}, {libraries}"


def run_recipe(command: str, words: Sequence[str]) -> None:
    """`run RECIPE [options] [overrides]`, or `STAGE --config RECIPE [options] [overrides]`."""
    from pipeline.configs import Recipe
    from stages.errors import ConfigError

    if command == "evaluate" and words and not words[0].startswith("-") and not words[0].endswith(RECIPE_ENDINGS):
        raise ConfigError(
            "evaluate compares the SFT model and the policy of a recipe: triptych evaluate --config RECIPE; to examine "
            f"a reward model, write: triptych judge {' '.join(words)}"
        )
    parser = Arguments(command, add_help=False, recipe_settings=Recipe.__dataclass_fields__)
    parser.add_argument("recipe", nargs="?", help="recipe file")
    if command == "run":
        parser.add_argument("--from", dest="first", metavar="STAGE", help="start here; earlier stages must be done")
        parser.add_argument("--only", metavar="STAGE", help="run only this stage")
    parser.add_argument("--config", metavar="RECIPE", help="recipe file")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="read FILE in place of data set NAME (repeatable)",
    )
    parser.add_root()
    parser.add_argument("--force", action="store_true", help="run the selected stages even if they are done")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all inputs, and print which stages would run and why"
    )
    parser.add_argument("--check-model", action="store_true", help="also load the base model's weights and check them")
    parser.add_argument(
        "--print_config", "--print-config", action="store_true", help="print the recipe with all defaults"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help with the recipe's settings")
    options, overrides = parser.parse_with_settings(words)

    from pipeline.recipe import as_yaml, load_recipe

    if options.help:
        from pipeline.settings_help import settings_help

        print(parser.format_help() + "\n" + settings_help(STAGE_COMMANDS.get(command)))
        return
    first, only = getattr(options, "first", None), getattr(options, "only", None)
    if first and only:
        raise ConfigError(f"--from {first} and --only {only} exclude each other; give one of them")
    path = given_recipe(command, options.recipe, options.config)
    copies = {}
    for pair in options.data:
        name, separator, file = pair.partition("=")
        if not separator:
            raise ConfigError(f"--data is '{pair}'; it must be NAME=FILE, for example Anthropic/hh-rlhf=hh.jsonl.gz")
        if name in copies:
            raise ConfigError(f"--data names the data set '{name}' twice; give one file for it")
        copies[name] = file
    recipe = load_recipe(path, overrides, copies)
    if options.print_config:
        print(as_yaml(recipe), end="")
        return

    from pipeline.plan import Selection
    from pipeline.runner import run_pipeline

    first, only = (name and STAGE_COMMANDS.get(name.replace("_", "-"), name) for name in (first, only))
    selection = Selection(first, STAGE_COMMANDS.get(command) or only, options.force)
    run_pipeline(recipe, options.root, selection, options.dry_run, check_model=options.check_model)


def given_recipe(command: str, word: str | None, config: str | None) -> Path:
    """The recipe's file, which is given as a word or with --config. Raises ConfigError for none or two."""
    from stages.errors import ConfigError

    call = "triptych run RECIPE" if command == "run" else f"triptych {command} --config RECIPE"
    if word is not None and config is not None:
        raise ConfigError(f"two recipes are given, '{word}' and '{config}'; give one: {call}")
    if word is None and config is None:
        raise ConfigError(f"no recipe is given; write: {call}")
    return Path(word or config or "")


def stage_script(stage: str) -> NoReturn:
    """Entry point of scripts/STAGE.py."""
    sys.exit(main([stage, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
