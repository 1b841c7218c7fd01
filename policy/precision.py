"""In which type a model computes: float32, or under bfloat16 autocast, which keeps weights and gradients in float32.

A model is told once; from then on whatever reads it enters autocast around the reading alone. So losses, advantages and
scalar heads stay outside, in float32, and autocast's cache of cast weights ends with the reading: no optimiser step can
leave an old cast behind.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from policy.language_model import load_config

logger = logging.getLogger("triptych.precision")
P = ParamSpec("P")
T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]
Stopwatch = Callable[[Precision], float]

CLEARLY_FASTER = 1.3  # a model does more than multiply, and all else gains nothing
ROWS, REPEATS, ENOUGH = 256, 5, 0.05  # tokens; repetitions, fewer where they take more than so many seconds
_in_bfloat16: WeakSet[PreTrainedModel] = WeakSet()


def compute_in(model: PreTrainedModel, precision: str) -> None:
    """From here on the model is read in "float32", as every model is at first, or in "bfloat16"."""
    (_in_bfloat16.add if precision == "bfloat16" else _in_bfloat16.discard)(model)


def reads_model(
    read: Callable[Concatenate[PreTrainedModel, P], T],
) -> Callable[Concatenate[PreTrainedModel, P], T]:
    """Decorates a function whose first argument is the model that it reads, to compute as that model was told."""

    @wraps(read)
    def reading(model: PreTrainedModel, *args: P.args, **named: P.kwargs) -> T:
        with autocast(model.device) if model in _in_bfloat16 else nullcontext():
            return read(model, *args, **named)

    return reading


def autocast(device: torch.device, enabled: bool = True) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def choose_precision(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device, model: str | Path
) -> Precision:
    """ "auto" is bfloat16 where that is clearly faster on this device for a model of this width, by measurement."""
    if name != "auto":
        return name
    width = load_config(model).get_text_config().hidden_size
    return faster_precision(device, width)


def faster_precision(device: torch.device, width: int, stopwatch: Stopwatch | None = None) -> Precision:
    """The type in which layers of this width are clearly faster, with a line in the log that says so. `stopwatch` gives
    the seconds that a type takes."""
    seconds = stopwatch or partial(seconds_of_layer, device, width)
    ratio = seconds("float32") / seconds("bfloat16")
    chosen: Precision = "bfloat16" if ratio >= CLEARLY_FASTER else "float32"
    logger.info("precision: %s (bfloat16 is %.2f times as fast on %s at width %d)", chosen, ratio, device, width)
    return chosen


@torch.no_grad()
def seconds_of_layer(device: torch.device, width: int, precision: Precision) -> float:
    """Median time of a (width, width) linear layer on 256 tokens as PPO would compute it, the cast of its float32
    weight included."""
    inputs, layer = torch.ones(ROWS, width, device=device), torch.ones(width, width, device=device)
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEATS and sum(times) < ENOUGH):
        started = time.perf_counter()
        with autocast(device, precision == "bfloat16"):
            torch.nn.functional.linear(inputs, layer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one makes kernels ready
