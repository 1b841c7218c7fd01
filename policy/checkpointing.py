"""Gradient checkpointing (Chen et al. 2016): a layer keeps its input alone and is computed again in the backward pass.

transformers has the same as a switch, but there it acts in training mode only, which PPO's models, dropout off, are
never in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from policy.errors import ModelError


@contextmanager
def checkpointed(on: bool, *models: nn.Module) -> Iterator[None]:
    """Within it, if `on`, the models' layers compute their states twice and keep them never; gradients are the same.

    The non-reentrant kind: gradients reach adapters though a layer's input needs none, and dropout is drawn again as it
    was. Sample outside: a cache would be filled twice. Raises ModelError for a model without such layers.
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
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
