"""Gradient checkpointing (Chen et al. 2016): a layer keeps only its input and is recomputed in the backward pass.

transformers has a switch for this, but it works in training mode only, and PPO's models are never in training mode
(dropout is off).
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
from policy.precision import for_recomputation
from policy.reading.body import replaced_forwards

CACHES = {"past_key_values", "past_key_value", "layer_past"}  # the layers' names for a key-value cache


@contextmanager
def checkpointed(on: bool, *models: nn.Module) -> Iterator[None]:
    """Context in which, if `on`, the models' layers recompute their states in backward; gradients do not change.

    It is the non-reentrant kind: gradients reach adapters even if a layer's input needs none, and dropout masks repeat.
    Passes without gradients, as in sampling, do not change. Raises ModelError if a model has no such layers."""
    layers = []
    for model in models if on else ():
        own = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not own:
            raise ModelError(
                f"{type(model).__name__} has no layers that can be recomputed; set gradient_checkpointing to false"
            )
        layers += own
    with replaced_forwards({layer: partial(_compute_twice, layer.forward) for layer in layers}):
        yield


def _compute_twice(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    for cache in CACHES & named.keys():
        named[cache] = None  # it would already be full on recomputation
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=for_recomputation, **named)
