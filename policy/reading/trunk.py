"""A frozen trunk: a model's lower layers, whose states of a text are computed once and read by all layers above.

Models that share these layers (the policy, reference, value and reward model made from one SFT model) all go on from
the same states, so a later pass costs only the layers that differ. The body runs its own forward pass: layers that have
been read already do nothing, and the last of them returns the states. So embedding scales, learned positions, masks and
windows are the architecture's own. Whether that is exact is tried on the model's twin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.reading.body import body_of, call, replaced_forwards, states


class Part(NamedTuple):
    """The layers of a body that a pass runs; all of them by default."""

    first: int = 0
    """Layers below this one are skipped, and `below` takes the place of their output."""
    below: Tensor | None = None
    """(..., hidden) states that enter layer `first`, for the same tokens as the ids."""
    taps: tuple[int, ...] = ()
    """Return the states that enter these layers, side by side (..., hidden * taps), and run no layer above them."""


WHOLE = Part()
OTHER = re.compile("vision|visual|image|audio")  # names of parts that read no text
_first_layer: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
_returned: dict[type[nn.Module], int] = {}  # by class of layer


def read_above(model: PreTrainedModel, first: int) -> None:
    """Let this model be read from the states that enter layer `first`, wherever a text comes with them."""
    _first_layer[model] = first


def first_layer_of(model: PreTrainedModel) -> int | None:
    """The layer set by `read_above`; None if the model always reads texts from their ids."""
    return _first_layer.get(model)


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(name within the body, layers) of a decoder's layers. Raises ModelError if they are no plain list."""
    n = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in body_of(model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n
    ]
    # A model for images has a tower with layers of its own.
    text = [each for each in lists if not OTHER.search(each[0])]
    if text:
        return text[0]
    raise ModelError(
        f"{type(model).__name__} does not keep its {n} layers in one list, so they cannot be trained in part; leave "
        "trainable_layers out."
    )


def states_of_part(model: PreTrainedModel, ids: Tensor, part: Part, **wanted: Any) -> Tensor:
    """(batch, tokens) ids -> (batch, tokens, hidden) states of the body, as `part` says (with taps: hidden * taps)."""
    if part == WHOLE:
        return states(model, ids, **wanted)
    _, layers = layers_of(model)
    kept: dict[int, Tensor] = {}
    stubs: dict[nn.Module, Callable[..., Any]] = {}
    for i in range(part.first):
        given = part.below if i == part.first - 1 else None
        stubs[layers[i]] = _stub(model, given)
    if part.taps:
        stubs |= {layer: _stub(model) for layer in layers[max(part.taps) :]}
    hooks = [layers[tap].register_forward_pre_hook(_keep(kept, tap), with_kwargs=True) for tap in part.taps]
    try:
        with replaced_forwards(stubs):
            hidden: Tensor = call(body_of(model), ids, use_cache=False, **wanted).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([kept[tap] for tap in part.taps], dim=-1) if part.taps else hidden


def _stub(model: PreTrainedModel, given: Tensor | None = None) -> Callable[..., Any]:
    """A layer's forward pass that returns `given`, or else what enters it, in the form that these layers return."""
    n = _returned_by_layers(model)

    def forward(*inputs: Any, **named: Any) -> Any:
        hidden = _entering(inputs, named) if given is None else given
        return (hidden, *[None] * (n - 1)) if n else hidden

    return forward


def _entering(inputs: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = inputs[0] if inputs else named["hidden_states"]
    return hidden


def _keep(kept: dict[int, Tensor], tap: int) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> None:
        kept[tap] = _entering(inputs, named)

    return hook


@torch.no_grad()
def _returned_by_layers(model: PreTrainedModel) -> int:
    """Length of the tuple that a layer returns; 0 if it returns the states alone."""
    layer = layers_of(model)[1][0]
    if type(layer) not in _returned:
        found: list[Any] = []
        hook = layer.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            states(model, torch.zeros(1, 1, dtype=torch.long, device=model.device))
        finally:
            hook.remove()
        _returned[type(layer)] = len(found[0]) if isinstance(found[0], tuple) else 0
    return _returned[type(layer)]
