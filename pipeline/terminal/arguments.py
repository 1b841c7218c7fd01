"""Command lines: mistakes in one line, with what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from checkpoint_store import Root, StoreError, parse_root
from stages.errors import ConfigError

DEFAULT_ROOT = Path("out")
WORDS = {"int": "a whole number", "float": "a number"}
LARGEST_SEED = 2**32 - 1  # of numpy's generator


class Arguments(argparse.ArgumentParser):
    """argparse for `triptych COMMAND`, whose errors are a ConfigError in one line instead of an exit.

    A command that also takes a recipe's settings as options gives their names as `recipe_settings`."""

    def __init__(
        self, command: str, description: str | None = None, recipe_settings: Iterable[str] = (), **rest: Any
    ) -> None:
        self.command = command
        self.settings = [f"--{name}" for name in recipe_settings]  # of the recipe itself, such as --seed
        super().__init__(prog=f"triptych {command}", description=description, allow_abbrev=False, **rest)

    def add_root(self) -> None:
        """--root, which all commands share."""
        words = "folder for checkpoints and runs, or address of a bucket's folder for checkpoints (default: out)"
        self.add_argument("--root", type=root, default=DEFAULT_ROOT, metavar="DIR", help=words)

    def parse_args(self, words: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]  # it has overloads
        given = list(sys.argv[1:] if words is None else words)
        for word in given:  # before argparse, which would first report words that are missing
            if word.startswith("--") and word.partition("=")[0] not in self.options():
                self.refuse(word)
        options = [word.partition("=")[0] for word in given if word.startswith("--")]
        for name in dict.fromkeys(options):
            if options.count(name) > 1 and type(self._option_string_actions[name]).__name__ == "_StoreAction":
                self.error(f"{name} is given {options.count(name)} times; give it once")
        parsed, rest = self.parse_known_args(given, namespace)
        if rest:
            self.refuse(rest[0])
        return parsed

    def parse_with_settings(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """-> (the command's options, the words that override a recipe's settings, such as --ppo.kl_coef 0.05)."""
        own, overrides = [], []
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            name = word.partition("=")[0]
            if not self.is_setting(name):
                own.append(word)
                continue
            overrides.append(word)
            if "=" not in word and waiting and not waiting[0].startswith("--"):
                overrides.append(waiting.pop(0))
        return self.parse_args(own), overrides

    def is_setting(self, name: str) -> bool:
        """Whether an option is a recipe's setting: dotted, or one of the recipe itself that is not also an option."""
        return name.startswith("--") and ("." in name or (name in self.settings and name not in self.options()))

    def refuse(self, word: str) -> NoReturn:
        """Raise for a word that the command does not know."""
        name = word.partition("=")[0]
        if not name.startswith("-"):
            self.error(f"'{word}' is one word too many")
        near = did_you_mean(name, [*self.options(), *self.settings])
        if not near and self.settings:
            from pipeline.build import meant
            from pipeline.configs import Recipe

            near = f"; {hint[0].lower()}{hint[1:]}" if (hint := meant(name.lstrip("-"), Recipe, "")) else ""
        self.error(f"unknown option {name}{near}")

    def options(self) -> list[str]:
        """All options of the command."""
        return [option for option in self._option_string_actions if option.startswith("--")]

    def error(self, message: str) -> NoReturn:
        text = plain(message)
        end = " " if text.endswith("?") else "; "
        raise ConfigError(f"{self.command}: {text}{end}'{self.prog} --help' lists the options")


def plain(message: str) -> str:
    """argparse's message without Python's names of types."""
    text = message.removeprefix("argument ")
    if found := re.fullmatch(r"(.*?): invalid (\w+) value: (.*)", text):
        return f"{found[1]} is {found[3]}; it must be {WORDS.get(found[2], 'a valid value')}"
    if found := re.fullmatch(r"(.*?): invalid choice: '(.*?)' \(choose from (.*)\)", text):
        choices = [choice.strip(" '") for choice in found[3].split(",")]
        return f"{found[1]} is '{found[2]}'; it must be one of {', '.join(choices)}{did_you_mean(found[2], choices)}"
    if found := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"{found[1]} is missing"
    text = text.replace(": is ", " is ", 1)  # from this file's own types
    return re.sub(r": expected (one|at least one) argument$", " has no value", text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean X?", or nothing if no known word is near."""
    near = difflib.get_close_matches(word.replace("_", "-"), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def root(text: str) -> Root:
    """The type of --root."""
    try:
        return parse_root(text)
    except StoreError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed(text: str) -> int:
    """The type of --seed."""
    if not text.isascii() or not text.isdigit() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def count(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number, at least 1")
    return int(text)
