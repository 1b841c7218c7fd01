"""The type a model computes in: float32, or bfloat16 autocast, which keeps weights and gradients in float32.

The type is set once per model; from then on every function that reads the model enters autocast for its forward pass
only. Losses, advantages and scalar heads stay outside, in float32. Autocast's cache of cast weights ends with each
forward pass, so no cast is used after an optimiser step has changed the weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policy.language_model import load_config
from policy.reading.body import body_of

logger = logging.getLogger("triptych.precision")
P = ParamSpec("P")
T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]
Stopwatch = Callable[[Precision], float]

UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # torch's names for a CPU's; the last two are ARM's
LEAST_WIDTH = 512  # below it a model's other operations, which autocast slows down, take most of the time
CLEARLY_FASTER = 1.3  # only matrix products gain from bfloat16, so a small gain there is not worth it
ROWS, ROWS_ON_GPU = 256, 4096  # tokens per forward pass in the trial
LEAST_PAIRS, MOST_PAIRS, ENOUGH = 5, 50, 0.2  # measurements of both types; seconds after which they stop
_in_bfloat16: WeakSet[PreTrainedModel] = WeakSet()


def compute_in(model: PreTrainedModel, precision: str) -> None:
    """Set the type the model is read in from now on: "float32", the initial state, or "bfloat16"."""
    (_in_bfloat16.add if precision == "bfloat16" else _in_bfloat16.discard)(model)


@contextmanager
def computing_in(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Context in which the model is read in this type; afterwards in float32."""
    compute_in(model, precision)
    try:
        yield
    finally:
        compute_in(model, "float32")


def reads_model(read: Callable[Concatenate[PreTrainedModel, P], T]) -> Callable[Concatenate[PreTrainedModel, P], T]:
    """Decorator: run a function, whose first argument is the model it reads, in the type set for that model."""

    @wraps(read)
    def reading(model: PreTrainedModel, *args: P.args, **named: P.kwargs) -> T:
        with autocast(model.device) if model in _in_bfloat16 else nullcontext():
            return read(model, *args, **named)

    return reading


@contextmanager
def autocast(device: torch.device, enabled: bool = True) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), trained_attention(device, enabled):
        yield


def trained_attention(device: torch.device, in_bfloat16: bool) -> AbstractContextManager[Any]:
    """Context for passes in which a model trains under autocast: see Float32Attention."""
    needed = in_bfloat16 and device.type == "cpu" and torch.is_grad_enabled()
    return Float32Attention() if needed else nullcontext()


class Float32Attention(TorchFunctionMode):
    """Compute attention in float32 where it will be differentiated.

    The backward pass of torch's attention for CPUs takes four times as long in bfloat16 as in float32, which is as much
    as half of a layer's matrix products; the forward pass gains a millisecond."""

    entered = 0  # contexts that are open now

    def __enter__(self) -> Self:
        Float32Attention.entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        Float32Attention.entered -= 1
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention or not any(map(_trains, (*args, *named.values()))):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_widened, args), **{name: _widened(value) for name, value in named.items()})


def _trains(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def for_recomputation() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of torch's checkpoint: what is computed again in the backward pass is computed in the same way.
    Autocast itself is restored by torch."""
    return nullcontext(), Float32Attention() if Float32Attention.entered else nullcontext()


@contextmanager
def cast_frozen(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the frozen weights of the model's linear layers are held in bfloat16, if it is read in that.

    Autocast keeps the cast of a weight only if the weight requires a gradient; it casts frozen ones again in every
    forward pass, so in sampling for every token. Results are the same bit for bit. An embedding stays float32; an
    output head tied to it gets a copy of its own. The copies take half as much memory as the weights they stand for.
    Inside the context the weights must be neither changed nor saved."""
    held: list[tuple[nn.Module, str, nn.Parameter]] = []
    if model in _in_bfloat16:
        head = model.get_output_embeddings()  # None for a scalar model, whose head is read in float32
        for module in chain(body_of(model).modules(), head.modules() if head is not None else ()):
            if type(module) not in (nn.Linear, Conv1D):  # what a subclass does with its weight is not known
                continue
            for name, value in module.named_parameters(recurse=False):
                if value.dtype == torch.float32 and not value.requires_grad:
                    held.append((module, name, value))
    copies: dict[int, nn.Parameter] = {}  # one for each tensor, as layers may share theirs
    try:
        for module, name, value in held:
            if id(value) not in copies:
                copies[id(value)] = nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False)
            module._parameters[name] = copies[id(value)]
        yield
    finally:
        for module, name, value in held:
            module._parameters[name] = value


def choose_precision(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device, model: str | Path
) -> Precision:
    """Resolve "auto" for a model of this width on this device: see `faster_precision`."""
    if name != "auto":
        return name
    width = load_config(model).get_text_config().hidden_size
    return faster_precision(device, width)


def faster_precision(device: torch.device, width: int, stopwatch: Stopwatch | None = None) -> Precision:
    """Choose bfloat16 where the device has units for it, the model is wide enough to gain, and a trial is clearly
    faster; else float32. Logs the choice with its reason. `stopwatch` returns the seconds that a type takes, once.

    The first two conditions are facts, and where they hold the trial is far from its limit, so that the same machine
    always chooses the same type."""
    chosen: Precision = "float32"
    if not has_units(device):
        reason = f"this {device.type} has no units for bfloat16"
    elif width < LEAST_WIDTH:
        reason = f"a model of width {width} is too narrow to gain from bfloat16; the least is {LEAST_WIDTH}"
    else:
        ratio = times_as_fast(stopwatch) if stopwatch else _measured(device, width)
        chosen = "bfloat16" if ratio >= CLEARLY_FASTER else "float32"
        reason = f"bfloat16 is {ratio:.2f} times as fast on {device} at width {width}"
    logger.info("precision: %s (%s)", chosen, reason)
    return chosen


@cache
def _measured(device: torch.device, width: int) -> float:
    """`times_as_fast` for a real layer; once in a process, so that all stages of a run decide alike."""
    return times_as_fast(partial(seconds_of_layer, device, width))


def has_units(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 does not say
    return any(found.get(name) for name in UNITS)


def times_as_fast(seconds: Stopwatch) -> float:
    """The least of float32's seconds / the least of bfloat16's. Both are measured in turn, so that what else the
    machine does disturbs both; it can only add to a measurement, so the least one is the nearest to the truth."""
    seconds("float32"), seconds("bfloat16")  # the first ones warm up the kernels
    started = time.perf_counter()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < LEAST_PAIRS or (len(pairs) < MOST_PAIRS and time.perf_counter() - started < ENOUGH):
        pairs.append((seconds("float32"), seconds("bfloat16")))
    float32, bfloat16 = map(min, zip(*pairs, strict=True))
    return float32 / bfloat16


def seconds_of_layer(device: torch.device, width: int, precision: Precision) -> float:
    """Seconds of a (width, width) linear layer, forward and backward, as training computes it: with the cast of its
    float32 weight and a float32 gradient. On a CPU they are the process's own, without its waiting for others."""
    rows = ROWS_ON_GPU if device.type == "cuda" else ROWS
    inputs = torch.ones(rows, width, device=device, requires_grad=True)
    weight = torch.ones(width, width, device=device, requires_grad=True)
    started = _now(device)
    with autocast(device, precision == "bfloat16"):
        outputs = nn.functional.linear(inputs, weight)
    torch.autograd.grad(outputs, (inputs, weight), torch.ones_like(outputs))
    return _now(device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
