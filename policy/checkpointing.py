"""Gradient checkpointing (Chen et al. 2016): a layer keeps its input alone and is computed again in the backward pass.

It acts where a layer is in training mode, and there it forbids the cache that sampling needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from policy.errors import ModelError


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Turn it on, in place. The non-reentrant kind: its gradients reach adapters though the inputs of the layers need
    none, and dropout is drawn again as it was."""
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot checkpoint gradients; set gradient_checkpointing to false"
        ) from error


@contextmanager
def checkpointed(*models: nn.Module) -> Iterator[None]:
    """Within it, checkpointing acts in models that are in evaluation mode, dropout staying off."""
    layers = [m for model in models for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = True  # of the layer alone: what is inside stays as it is
        yield
    finally:
        for layer, was_training in zip(layers, before, strict=True):
            layer.training = was_training
