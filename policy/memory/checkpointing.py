"""Gradient checkpointing (Chen et al. 2016): a layer keeps its input alone and is computed again in the backward pass.

transformers has the same as a switch, but there it acts in training mode only, which PPO's models, dropout off, are
never in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from policy.errors import ModelError

CACHES = {"past_key_values", "past_key_value", "layer_past"}  # what layers call theirs


@contextmanager
def checkpointed(on: bool, *models: nn.Module) -> Iterator[None]:
    """Within it, if `on`, the models' layers compute their states twice and keep them never; gradients are the same.

    The non-reentrant kind: gradients reach adapters though a layer's input needs none, and dropout is drawn again as it
    was. Without gradients, as in sampling, nothing differs. Raises ModelError for a model without such layers.
    """
    layers = []
    for model in models if on else ():
        own = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not own:
            raise ModelError(
                f"{type(model).__name__} has no layers that can be computed again; set gradient_checkpointing to false"
            )
        layers += own
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_compute_twice, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _compute_twice(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    for cache in CACHES & named.keys():
        named[cache] = None  # the second time it would be full already
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
