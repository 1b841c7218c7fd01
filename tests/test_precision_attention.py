"""Attention under bfloat16 autocast on a CPU: in float32 where it is differentiated, also when it is recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_sft_stage as sft_stage
import torch
from small_recipe import Chain
from tiny_models import quickstart_tokenizer, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode

from policy.memory.checkpointing import checkpointed
from policy.precision import Float32Attention, compute_in
from policy.reading.states import states_of_sequences

ONE, EIGHT = torch.tensor([0]), torch.tensor([8])


class AttentionTypes(TorchDispatchMode):
    """Collects the types in which attention is computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name:
            self.seen.append(("backward" if "backward" in name else "forward", args[0].dtype))
        return func(*args, **(kwargs or {}))


def read(model: Any) -> torch.Tensor:
    ids = torch.randint(5, 50, (8,), generator=torch.Generator().manual_seed(0))
    return states_of_sequences(model, ids, EIGHT, ONE, EIGHT)


def model_in(precision: str) -> Any:
    model = tiny_llama(quickstart_tokenizer())
    compute_in(model, precision)
    read(model)  # how the model is read is tried here, not while attention is watched
    return model


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_attention_is_float32_where_it_trains_and_in_the_model_s_type_where_it_only_reads(precision: str) -> None:
    model = model_in(precision)
    with AttentionTypes() as training:
        read(model).sum().backward()
    assert {kind for kind, _ in training.seen} == {"forward", "backward"}
    assert {dtype for _, dtype in training.seen} == {torch.float32}
    with AttentionTypes() as reading, torch.no_grad():
        read(model)
    assert set(reading.seen) == {("forward", getattr(torch, precision))}
    assert Float32Attention.entered == 0


def test_layers_that_are_frozen_keep_bfloat16() -> None:
    model = model_in("bfloat16")
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    with AttentionTypes() as types:
        read(model).sum().backward()
    n = len(model.model.layers)
    forward = [dtype for kind, dtype in types.seen if kind == "forward"]
    assert n > 1 and forward == [torch.bfloat16] * (n - 1) + [torch.float32]


def test_recomputed_layers_give_the_same_gradient_bit_for_bit() -> None:
    gradients = []
    for on in (False, True):
        model = model_in("bfloat16")
        with checkpointed(on, model):
            states = read(model)
        states.square().sum().backward()
        gradients.append([weight.grad for weight in model.model.layers.parameters()])
    for once, twice in zip(*gradients, strict=True):
        assert once is not None and torch.equal(once, twice)


def test_sft_trains_with_it_too(chain: Chain, tmp_path: Path) -> None:
    with AttentionTypes() as types:
        sft_stage.train(chain, tmp_path, precision="bfloat16", epochs=0.06, gradient_checkpointing=True)
    backward = {dtype for kind, dtype in types.seen if kind == "backward"}
    assert backward == {torch.float32}
