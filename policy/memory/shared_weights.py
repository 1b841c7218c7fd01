"""Several models over one copy of the weights: separate modules, shared tensors."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def share_weights(module: M) -> M:
    """Copy the module; the copy's parameters and buffers are the same tensors.

    Adapters, hooks and a head added to the copy affect only the copy, so nothing has to be switched between passes.
    In-place changes of a tensor (an optimiser step on a shared weight, merging adapters) affect all copies."""
    tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, tensors)


def copy_trained(module: M) -> M:
    """Copy the module with what trains in it; frozen parameters and all buffers of the copy are the same tensors."""
    frozen = (parameter for parameter in module.parameters() if not parameter.requires_grad)
    tensors = {id(tensor): tensor for tensor in chain(frozen, module.buffers())}
    return copy.deepcopy(module, tensors)
