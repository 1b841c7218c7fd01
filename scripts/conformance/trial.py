"""Tries an architecture: builds it tiny, saves it, loads it as a recipe would, and runs all checks.

Texts are longer than the tiny model's window, of unequal length, long next to short; answers end early.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from policy.errors import ModelError
from policy.language_model import load_language_model, save_checkpoint
from policy.reading.twin import tiny_twin
from policy.reading.ways import Reading, reading_of
from scripts.conformance.configs import NOT_TRIED, config_of
from scripts.conformance.language import language_checks
from scripts.conformance.reference import CPU, EXACT, own_logits, tokenizer, vocabulary
from scripts.conformance.scalar import scalar_checks

# How texts are read where it is not the fastest way: field and value of policy/reading/ways.py:Reading -> words.
WAYS: dict[tuple[str, str], str] = {
    ("logits", "own forward"): "own logits",
    ("rows", "padded"): "not packed",
    ("rows", "equal"): "equal lengths",
    ("rows", "single"): "one by one",
    ("cache", "equal"): "equal prompts",
    ("cache", "none"): "no cache",
    ("rows", "refused"): "texts within the rope's length",
    ("cache", "refused"): "answers within the rope's length",
}


class Outcome(NamedTuple):
    """What was found for one architecture."""

    name: str
    state: str  # "exact", "slower", "limited", "refused", "not tried", "wrong" or "error"
    notes: tuple[str, ...] = ()


def try_architecture(name: str) -> Outcome:
    """Build an architecture and hold everything that stages compute with it against its own forward pass."""
    if name in NOT_TRIED:
        return Outcome(name, "not tried", (NOT_TRIED[name],))
    try:
        model = tiny_twin(config_of(name))
        with torch.no_grad():
            own_logits(model, [5, 6, 7])
    except Exception as error:  # transformers' own code fails in ways that cannot be listed
        return Outcome(name, "error", (f"building: {_line(error)}",))
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_checkpoint(model, tokenizer(vocabulary(model)), Path(folder))
            loaded = load_language_model(folder, CPU)
            ways = slower_ways(reading_of(loaded.model))
            checks = language_checks(loaded) | scalar_checks(Path(folder), vocabulary(loaded.model))
        except ModelError as error:
            return Outcome(name, "refused", (_line(error, folder),))
        except Exception as error:
            return Outcome(name, "error", (f"loading: {_line(error, folder)}",))
        return _run(name, checks, ways, folder)


def slower_ways(reading: Reading) -> tuple[str, ...]:
    """What is read in a slower way than usual, in two or three words each."""
    return tuple(words for (field, value), words in WAYS.items() if getattr(reading, field) == value)


def _run(name: str, checks: dict[str, Callable[[], float]], ways: tuple[str, ...], folder: str) -> Outcome:
    """Run the checks, each of which returns the largest difference from the reference."""
    wrong, errors, refused = [], [], []
    for what, check in checks.items():
        try:
            difference = check()
            if not difference <= EXACT:
                wrong.append(f"{what}: off by {difference:.2g}")
        except ModelError as error:
            refused.append(f"{what}: {_line(error, folder)}")
        except Exception as error:
            errors.append(f"{what}: {_line(error, folder)}")
    if wrong or errors:
        return Outcome(name, "wrong" if wrong else "error", (*wrong, *errors, *refused))
    if refused:
        return Outcome(name, "limited", (*ways, *refused))
    return Outcome(name, "slower" if ways else "exact", ways)


def _line(error: Exception, folder: str = "") -> str:
    kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
    text = " ".join(str(error).split())
    return f"{kind}{text.replace(folder, 'MODEL') if folder else text}"
