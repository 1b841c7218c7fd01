"""The type a model computes in: float32, or bfloat16 autocast, which keeps weights and gradients in float32.

The type is set once per model; from then on every function that reads the model enters autocast for its forward pass
only. Losses, advantages and scalar heads stay outside, in float32. Autocast's cache of cast weights ends with each
forward pass, so no cast is used after an optimiser step has changed the weights.
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

CLEARLY_FASTER = 1.3  # only matrix products gain from bfloat16, so a small gain there is not worth it
ROWS, REPEATS, ENOUGH = 256, 5, 0.05  # tokens; repetitions, stopping early after this many seconds
_in_bfloat16: WeakSet[PreTrainedModel] = WeakSet()


def compute_in(model: PreTrainedModel, precision: str) -> None:
    """Set the type the model is read in from now on: "float32", the initial state, or "bfloat16"."""
    (_in_bfloat16.add if precision == "bfloat16" else _in_bfloat16.discard)(model)


def reads_model(read: Callable[Concatenate[PreTrainedModel, P], T]) -> Callable[Concatenate[PreTrainedModel, P], T]:
    """Decorator: run a function, whose first argument is the model it reads, in the type set for that model."""

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
    """Resolve "auto" to bfloat16 if that measures clearly faster on this device for a model of this width."""
    if name != "auto":
        return name
    width = load_config(model).get_text_config().hidden_size
    return faster_precision(device, width)


def faster_precision(device: torch.device, width: int, stopwatch: Stopwatch | None = None) -> Precision:
    """Choose bfloat16 if layers of this width are clearly faster in it, else float32, and log the choice. `stopwatch`
    returns the seconds that a type takes."""
    seconds = stopwatch or partial(seconds_of_layer, device, width)
    ratio = seconds("float32") / seconds("bfloat16")
    chosen: Precision = "bfloat16" if ratio >= CLEARLY_FASTER else "float32"
    logger.info("precision: %s (bfloat16 is %.2f times as fast on %s at width %d)", chosen, ratio, device, width)
    return chosen


@torch.no_grad()
def seconds_of_layer(device: torch.device, width: int, precision: Precision) -> float:
    """Median seconds of a (width, width) linear layer on 256 tokens as PPO would compute it, including the cast of its
    float32 weight."""
    inputs, layer = torch.ones(ROWS, width, device=device), torch.ones(width, width, device=device)
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEATS and sum(times) < ENOUGH):
        started = time.perf_counter()
        with autocast(device, precision == "bfloat16"):
            torch.nn.functional.linear(inputs, layer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one warms up the kernels
