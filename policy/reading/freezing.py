"""Freezes a model's lower layers, so that models made from it can share them (policy/reading/trunk.py).

Whether the upper layers give the same numbers from the states below them as the whole model does is tried on the
model's twin, cut at every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from policy.errors import ModelError
from policy.precision import autocast
from policy.reading.body import body_of, states
from policy.reading.states import states_of_sequences
from policy.reading.trials import LONG, is_exact
from policy.reading.trunk import Part, layers_of, states_of_part
from policy.reading.twin import tiny_twin
from policy.reading.ways import Reading, architecture_key, reading_of, readings_of_config

_exact: dict[str, bool] = {}


def check_parts(model: PreTrainedModel, first: int) -> None:
    """Raise ModelError unless the layers from `first` on give the whole model's states from the states below them."""
    if not can_be_parted(model.config, model.device, model, first):
        raise ModelError(
            f"{type(model).__name__} does not give the same numbers when its upper layers go on from the states of its "
            "lower ones (they share caches, or more than one stream), so they cannot be trained alone; leave "
            "trainable_layers out."
        )


def can_be_parted(
    config: PreTrainedConfig, device: torch.device, model: PreTrainedModel | None = None, first: int = 1
) -> bool:
    """Whether this architecture can be read in two parts; tried once, on its twin, or on `model` if it has no twin.

    Raises ModelError if the architecture cannot be read at all, ValueError if there is neither twin nor model."""
    device = torch.device("cpu") if device.type == "meta" else device
    key = architecture_key(config, device)
    if key in _exact:
        return _exact[key]
    readings = readings_of_config(config, device)
    if readings is not None:
        twin = tiny_twin(config).to(device)
        try:
            cuts = range(1, len(layers_of(twin)[1]))
        except ModelError:
            cuts = range(0)
        found = len(cuts) > 0 and all(_same_in_parts(twin, cut, readings[1]) for cut in cuts)
        found = found and all(_own_weights_above(twin, cut) for cut in cuts)
        _exact[key] = found
        return found
    if model is None:
        raise ValueError(f"no tiny {config.model_type}")
    return _same_in_parts(model, first, reading_of(model))


def _own_weights_above(model: PreTrainedModel, cut: int) -> bool:
    try:
        return bool(names_above(model, cut))
    except ModelError:
        return False


@torch.no_grad()
def _same_in_parts(model: PreTrainedModel, cut: int, reading: Reading) -> bool:
    """Whether texts read in two parts, cut below layer `cut`, have the states that each has alone."""
    rng = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    lengths = torch.tensor(LONG[0], device=model.device)
    ids = torch.randint(size // 10, size - size // 10, (int(lengths.sum()),), generator=rng).to(model.device)
    whole = torch.zeros_like(lengths), lengths
    was_training = model.training
    model.eval()

    def in_parts() -> list[Tensor]:
        below = states_of_sequences(model, ids, lengths, *whole, part=Part(taps=(cut,)), rows=reading.rows)
        return [states_of_sequences(model, ids, lengths, *whole, part=Part(cut, below), rows=reading.rows)]

    try:
        with autocast(model.device, enabled=False):
            own = torch.cat([states(model, text[None])[0] for text in ids.split(lengths.tolist())])
            return is_exact(in_parts, [own])
    finally:
        model.train(was_training)


def names_above(model: PreTrainedModel, first: int) -> list[str]:
    """Full names of the parameters that the layers from `first` on consist of, and of those of the body that act after
    them (the final norm). The output head is not among them.

    Raises ModelError if a layer above shares a parameter with what is below."""
    body = body_of(model)
    name, layers = layers_of(model)
    prefix = next(each for each, module in model.named_modules() if module is body)
    outside = {own: weight for own, weight in body.named_parameters() if not own.startswith(f"{name}.")}
    above = _acting_above(model, first, outside)
    for own, weight in body.named_parameters(remove_duplicate=False):
        if own.startswith(f"{name}.") and int(own.removeprefix(f"{name}.").split(".")[0]) >= first:
            above[own] = weight
    below = {id(weight) for layer in layers[:first] for weight in layer.parameters()}
    below |= {id(weight) for own, weight in outside.items() if own not in above}
    if any(id(weight) in below for weight in above.values()):
        raise ModelError(
            f"layers of {type(model).__name__} share their weights with layers below them, so they cannot be trained "
            "alone; leave trainable_layers out."
        )
    return [f"{prefix}.{own}" if prefix else own for own in above]


def _acting_above(model: PreTrainedModel, first: int, outside: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of the body's parameters outside its layers that act on the states above layer `first`: autograd tells."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    trained = {own: weight.requires_grad for own, weight in outside.items()}
    with torch.no_grad():
        below = states_of_part(model, ids, Part(taps=(first,)))
    with torch.enable_grad():
        for weight in outside.values():
            weight.requires_grad_(True)
        total = states_of_part(model, ids, Part(first, below)).sum()
        found = torch.autograd.grad(total, list(outside.values()), allow_unused=True) if outside else ()
    for own, weight in outside.items():
        weight.requires_grad_(trained[own])
    return {own: weight for (own, weight), grad in zip(outside.items(), found, strict=True) if grad is not None}


@torch.no_grad()
def share_below(model: PreTrainedModel, other: PreTrainedModel, limit: int) -> int:
    """Make `model` use the tensors of `other` in what lies below its layers: in as many of the lowest layers (at most
    `limit`) as have the same weights in both. Returns this number of layers; 0 if their embeddings differ."""
    ours, theirs = (_below(each, limit) for each in (model, other))
    n = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not _equal(a, b)), len(ours)) - 1
    for own, shared in zip(ours[: n + 1], theirs, strict=False):
        for name in own:
            parent, _, leaf = name.rpartition(".")
            body_of(model).get_submodule(parent).register_parameter(leaf, shared[name])
    return max(0, n)


def _below(model: PreTrainedModel, limit: int) -> list[dict[str, nn.Parameter]]:
    """Parameters of the body by name: those outside its layers that act below them, then each layer's own."""
    body = body_of(model)
    name, layers = layers_of(model)
    outside = {own: weight for own, weight in body.named_parameters() if not own.startswith(f"{name}.")}
    above = _acting_above(model, len(layers) - 1, outside)
    found = [{own: weight for own, weight in outside.items() if own not in above}]
    for i, layer in enumerate(layers[:limit]):
        found.append({f"{name}.{i}.{own}": weight for own, weight in layer.named_parameters()})
    return found


def _equal(ours: Mapping[str, nn.Parameter], theirs: Mapping[str, nn.Parameter]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def freeze_below(model: PreTrainedModel, trainable_layers: int) -> int:
    """Let only the model's upper `trainable_layers` layers and what acts after them train; returns the number of frozen
    layers. A scalar head is the caller's.

    Raises ModelError if the model has no more layers than that, or is not the same when it is read in two parts."""
    n = len(layers_of(model)[1])
    if not 0 < trainable_layers < n:
        raise ModelError(
            f"trainable_layers is {trainable_layers}, but the model has {n} layers; set it to at most {n - 1}, or "
            "leave it out to train them all."
        )
    check_parts(model, n - trainable_layers)
    above = set(names_above(model, n - trainable_layers))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in above)
    return n - trainable_layers
