"""Several models over one copy of the weights: modules of their own, tensors in common."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def share_weights(module: M) -> M:
    """A copy of the module whose parameters and buffers are the very same tensors.

    So nothing has to be switched: adapters put into the copy, its hooks and its head are seen by it alone. What is
    written into a tensor in place (an optimiser's step on a shared weight, merging adapters) is seen by all.
    """
    tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, tensors)
