"""A stand-in for a GPU: its tensors say that they are on cuda:0 and hold their numbers in memory.

Inside `stand_in_gpu()` an operation on tensors of both devices fails as it would on a real GPU, and every wait of the
processor for the GPU is counted. Numbers are those of the CPU's kernels, so nothing is learned here about rounding,
speed or memory: those need a GPU. Autocast and bfloat16 are not imitated.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
ROOT = Path(__file__).parent.parent
OURS = tuple(f"{ROOT / name}/" for name in ("policy", "reward", "stages", "workbench"))
aten = torch.ops.aten
# The processor waits for these, since the size or value that they return must be known to it.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.repeat_interleave.self_Tensor,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.equal.default,
    aten.multinomial.default,  # checks its probabilities
}
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
make_generator = torch.Generator


class OnGpu(torch.Tensor):
    """A tensor that says that it is on the GPU. To autograd it is a tensor of the device "meta", which needs no GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held = held.detach()
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        apart = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim() > 0]
        if apart and func not in MOVES:
            if func not in INDEXES or not isinstance(args[0], OnGpu) or not all(x is not args[0] for x in apart):
                raise RuntimeError(f"{func}: tensors on cuda:0 and cpu")
            Waits.count("indices on the CPU")
        for generator in (x for x in leaves if isinstance(x, torch.Generator)):
            if generator.device.type != "cuda":
                raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
        if func in WAITS:
            Waits.count(str(func).removeprefix("aten."))
        if func in INDEXES and any(x.dtype == torch.bool for x in args[1] if isinstance(x, Tensor)):
            Waits.count("index by a mask")
        to_cpu = func is aten._to_copy.default and torch.device(kwargs.get("device") or GPU).type == "cpu"
        held = tree_map(lambda x: x.held if isinstance(x, OnGpu) else x, (args, kwargs))
        if "device" in kwargs:
            held[1]["device"] = torch.device("cpu")
        found = func(*held[0], **held[1])
        if to_cpu or (func is aten.copy_.default and not isinstance(args[0], OnGpu)):
            Waits.count("copy to the CPU")
            return found if to_cpu else args[0]
        own = {id(x.held): x for x in leaves if isinstance(x, OnGpu)}  # an operation in place returns its argument
        return tree_map(lambda x: own.get(id(x), OnGpu(x)) if isinstance(x, Tensor) else x, found)


class Waits:
    """How often the processor would wait for the GPU, by operation and by the line of ours that asks."""

    by_line: ClassVar[Counter[tuple[str, str]]] = Counter()

    @classmethod
    def count(cls, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        line = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "elsewhere"
        cls.by_line[(what, line)] += 1


class Generator(make_generator):  # type: ignore[misc,valid-type]
    """A generator that remembers the device it was made for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made: Generator = super().__new__(cls, "cpu")
        made.made_for = GPU if torch.device(device).type == "cuda" else torch.device("cpu")
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.made_for


def is_gpu(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


class Factories(TorchFunctionMode):
    """Makes tensors that are asked for on the GPU, or moved there, stand-ins."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return self(torch.Tensor.to, args[0], GPU)
        if func in (torch.Tensor.to, torch.Tensor.pin_memory):
            if func is torch.Tensor.pin_memory:
                return args[0]
            words = [x for x in args[1:] if isinstance(x, str | torch.device)] + [kwargs.get("device")]
            words += [x.device for x in args[1:] if isinstance(x, Tensor)]
            target = next((word for word in words if word is not None), None)
            if target is not None and not isinstance(args[0], OnGpu) and is_gpu(target):
                rest = [x for x in args[1:] if isinstance(x, torch.dtype)]
                dtype = rest[0] if rest else kwargs.get("dtype")
                like = next((x for x in args[1:] if isinstance(x, Tensor)), None)
                return Up.apply(args[0].to(dtype or (like.dtype if like is not None else args[0].dtype)))
            if target is not None and isinstance(args[0], OnGpu) and is_gpu(target):
                args = (args[0], *(x for x in args[1:] if isinstance(x, torch.dtype)))
                kwargs.pop("device", None)
                return func(*args, **kwargs) if len(args) > 1 or kwargs.get("dtype") else args[0]
            return func(*args, **kwargs)
        if func is torch.Tensor.tolist and isinstance(args[0], OnGpu):
            Waits.count("tolist")
            return args[0].held.tolist()
        if func is torch.Tensor.numpy and isinstance(args[0], OnGpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnGpu):
            return Attention.apply(*args[:3], kwargs)
        if is_gpu(kwargs.get("device")):
            kwargs["device"] = "cpu"
            needs = kwargs.pop("requires_grad", False)
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type != "cuda":
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            made = func(*args, **kwargs)
            made = made if isinstance(made, OnGpu) else OnGpu(made)
            return made.requires_grad_() if needs else made
        return func(*args, **kwargs)

    def __call__(self, func: Any, *args: Any) -> Any:
        return self.__torch_function__(func, (), args, {})


class MadeWithin(TorchDispatchMode):
    """Tensors that torch itself makes on a stand-in's device, such as the 0 in the gradient of `where`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "meta":
            return func(*args, **kwargs)
        if any(isinstance(x, Tensor) for x in tree_flatten(args)[0]):
            return func(*args, **kwargs)
        return OnGpu(func(*args, **kwargs | {"device": torch.device("cpu")}))


class Attention(torch.autograd.Function):
    """The CPU's own attention kernel; torch's fallback would make tensors of its own on the wrong device."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, settings: dict[str, Any]) -> Tensor:
        for each in (key, value, settings.get("attn_mask")):
            if each is not None and not isinstance(each, OnGpu):
                raise RuntimeError("attention: tensors on cuda:0 and cpu")
        ctx.inner = [each.held.detach().requires_grad_() for each in (query, key, value)]
        plain = {name: each.held if isinstance(each, OnGpu) else each for name, each in settings.items()}
        with torch.enable_grad():
            ctx.output = torch.nn.functional.scaled_dot_product_attention(*ctx.inner, **plain)
        return OnGpu(ctx.output.detach())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Tensor | None, ...]:
        return (*(OnGpu(each) for each in torch.autograd.grad(ctx.output, ctx.inner, grad.held)), None)


class Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGpu(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.cpu()


def keep_ties(move: Any) -> Any:
    """`Module.to` for stand-ins: weights that are one tensor before are one afterwards, as on a GPU."""

    def to(model: torch.nn.Module, *words: Any, **named: Any) -> torch.nn.Module:
        places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    places.setdefault(id(weight), []).append((module, name))
        move(model, *words, **named)
        for (first, own), *others in places.values():
            for module, name in others:
                module._parameters[name] = first._parameters[own]
        return model

    return to


@contextmanager
def stand_in_gpu() -> Iterator[Counter[tuple[str, str]]]:
    """Within it "cuda" is a device; yields how often each line of ours would make the processor wait."""
    Waits.by_line = Counter()
    with pytest.MonkeyPatch.context() as patch, Factories(), MadeWithin():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.nn.Module, "to", keep_ties(torch.nn.Module.to))
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: False)
        yield Waits.by_line
