"""Low-rank adapters (LoRA): which layers get them, which new tokens train with them, and how much they reach."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from policy.errors import ModelError, first_line

ALL_LINEAR = "all-linear"
UNLIKE = 0.1  # a row this much shorter, or nearer to the mean, than the usual one was never trained


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    targets: str,
    task_type: str,
    token_ids: Sequence[int] = (),
    within: Collection[str] | None = None,
) -> Any:
    """Wrap the model with trainable low-rank adapters (peft's PeftModel); `merged` makes a whole model of it again.

    task_type "CAUSAL_LM", or "SEQ_CLS", which also trains the scalar head. `targets`: "all-linear", or names of linear
    layers (or regular expressions of their full names), separated by commas. The rows of `token_ids` in the embedding
    and the output head are trained too. `within`: full names of parameters; only layers with one of them get an
    adapter. Raises ModelError if a target fits no layer."""
    from peft import LoraConfig, get_peft_model

    # Dropout 0: PPO compares log-probabilities of one text before and after a step; dropout would change them.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=_target_modules(model, targets) if within is None else _targets_within(model, targets, within),
        exclude_modules=_special_linear_layers(model) if targets.strip() == ALL_LINEAR else None,
        task_type=task_type,
    )
    try:
        with warnings.catch_warnings():
            # peft reads a transformers attribute under its deprecated name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # it sets it right itself
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets '{targets}' does not fit this model: {first_line(error)}") from error
    if token_ids:
        train_rows(adapted.get_base_model(), token_ids)
    return adapted


def _target_modules(model: PreTrainedModel, targets: str) -> str | list[str]:
    """`targets` as peft takes it. Raises ModelError unless every name fits a linear layer."""
    if targets.strip() == ALL_LINEAR:
        return ALL_LINEAR
    found = check_targets(model, targets)
    if all(layer == name or layer.endswith(f".{name}") for name, layers in found.items() for layer in layers):
        return list(found)
    return sorted({layer for layers in found.values() for layer in layers})


def _targets_within(model: PreTrainedModel, targets: str, within: Collection[str]) -> list[str]:
    """Full names of the layers that `targets` names and that have a parameter of `within`."""
    all_linear = targets.strip() == ALL_LINEAR
    named = linear_layers(model) if all_linear else list(chain.from_iterable(check_targets(model, targets).values()))
    found = [layer for layer in dict.fromkeys(named) if f"{layer}.weight" in within]
    if not found:
        raise ModelError(f"lora.targets '{targets}' names no layer among those that train; set '{ALL_LINEAR}'.")
    return found


def check_targets(model: PreTrainedModel, targets: str) -> dict[str, list[str]]:
    """Each name in `targets` with the full names of its layers. Raises ModelError unless every name fits a linear layer
    other than the output head."""
    names = [name.strip() for name in targets.split(",") if name.strip()]
    head = model.get_output_embeddings()
    layers = linear_layers(model)
    heads = [layer for layer in layers if model.get_submodule(layer) is head]
    linear = [layer for layer in layers if layer not in heads]
    found = {name: [layer for layer in layers if _fits(name, layer)] for name in names}
    missing = [name for name, layers in found.items() if not layers]
    if missing or not names:
        known = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in linear))
        unknown = "' or '".join(missing)
        raise ModelError(
            f"lora.targets '{targets}' does not fit this model: it has no linear layer named '{unknown}'; "
            f"its linear layers are {known}. Name some of these, or set '{ALL_LINEAR}'."
        )
    for name, fitting in found.items():
        if set(heads) & set(fitting):
            raise ModelError(
                f"lora.targets '{targets}' does not fit this model: '{name}' is its output head, whose weights are "
                "read directly, so an adapter on it would not be trained; leave it out."
            )
    return found


def _fits(target: str, layer: str) -> bool:
    if layer == target or layer.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, layer) is not None
    except re.error:
        return False


def linear_layers(model: nn.Module) -> list[str]:
    """Full names of the layers that can have an adapter: linear ones, those of GPT-2 and 4-bit ones included."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) or type(layer).__name__ == "Linear4bit"
    ]


def _special_linear_layers(model: nn.Module) -> list[str] | None:
    """Linear layers that compute something else than a product (routers of experts, grouped projections), to which an
    adapter's product cannot be added."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and type(layer).forward is not nn.Linear.forward
        and type(layer).__name__ != "Linear4bit"
    ] or None


def merged(adapted: Any) -> PreTrainedModel:
    """The whole model with its adapters and new rows merged into the weights; the adapted model is used up."""
    _merge_rows(adapted)  # first, so that peft finds tied weights tied
    model: PreTrainedModel = adapted.merge_and_unload()
    return model


@torch.no_grad()
def _merge_rows(model: nn.Module) -> None:
    """Write trained rows into the weights and make plain layers again. PyTorch's own `remove_parametrizations` changes
    the layer's class, which a copy of the model shares with the model that goes on training."""
    layers: list[Any] = [layer for layer in model.modules() if is_parametrized(layer, "weight")]
    for layer in layers:
        weight = layer.parametrizations.weight.original
        weight.copy_(layer.weight)
    for layer in layers:
        weight = layer.parametrizations.weight.original
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        layer.register_parameter("weight", weight)


class TrainedRows(nn.Module):
    """A weight with some of its rows replaced by rows that train while the rest is frozen."""

    ids: Tensor

    def __init__(self, weight: nn.Parameter, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(token_ids, device=weight.device), persistent=False)
        self.rows = nn.Parameter(weight.detach()[self.ids].clone())  # (tokens, hidden)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.ids, self.rows.to(weight.dtype))


def train_rows(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Let the rows of these tokens train, in the embedding and the output head: one set of rows if the two are tied."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is None or is_parametrized(layer, "weight"):  # tied, and done with the embedding
            continue
        weight = layer.weight
        rows = TrainedRows(weight, token_ids)
        for other in [part for part in model.modules() if getattr(part, "weight", None) is weight]:
            register_parametrization(other, "weight", rows)


@torch.no_grad()
def untrained_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, used: Collection[int]) -> tuple[int, ...]:
    """Those of the special tokens in `used` that the model has not learned: rows that were added at loading, an EOS
    that the model's configs did not name, and rows that are zero, much too short, or the mean of all rows, as new rows
    are made. Adapters on linear layers cannot give them a place of their own."""
    marked = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.pad_token_id}
    candidates = sorted(marked.intersection(used))
    if not candidates:
        return ()
    rows = model.get_input_embeddings().weight.float()
    mean, own = rows.mean(0), rows[candidates]
    short = own.norm(dim=1) < UNLIKE * rows.norm(dim=1).median()
    usual = (own - mean).norm(dim=1) < UNLIKE * (rows - mean).norm(dim=1).median()
    new = set(getattr(model, "new_ids", ()))
    odd = (short | usual).tolist()
    return tuple(i for i, is_odd in zip(candidates, odd, strict=True) if is_odd or i in new)


def reach(adapted: Any) -> dict[str, Any]:
    """How much of a model the adapters reach: `share` of its parameters in layers with an adapter, the number of
    `trained` parameters, and the number of new `tokens` whose rows train."""
    base = adapted.get_base_model()
    layers = [layer for layer in base.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]
    rows = {id(part): len(part.rows) for part in base.modules() if isinstance(part, TrainedRows)}
    adapters = {id(p) for name, p in base.named_parameters() if "lora_" in name or name.endswith(".rows")}
    whole = sum(_count(p) for p in base.parameters() if id(p) not in adapters)
    reached = sum(_count(p) for layer in layers for p in layer.base_layer.parameters())
    return {
        "share": reached / whole,
        "trained": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "tokens": max(rows.values(), default=0),
    }


def _count(parameter: nn.Parameter) -> int:
    """Number of weights; those of 4 bits are stored two to a byte."""
    return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)


def describe_reach(stage: str, found: dict[str, Any]) -> str:
    """One line for the log."""
    rows = f", and the rows of {found['tokens']} new tokens" if found["tokens"] else ""
    return (
        f"{stage}: adapters on layers with {found['share']:.0%} of the model's parameters{rows}; "
        f"{found['trained']:,} parameters train"
    )
