"""The states of a trunk for the texts of a rollout, kept in memory, or in a file if there are many."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class KeptStates(NamedTuple):
    """States that enter some layers, for each token of some texts. Texts of a rollout are rows of [prompt | answer]."""

    flat: dict[int, Tensor]  # layer -> (tokens, hidden) of all texts that were read, text after text
    starts: Tensor  # (texts,) place of each text's first token, on the CPU
    lengths: Tensor  # (texts,) tokens of each text, on the CPU

    def of(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(tokens of these texts, hidden) states that enter this layer, text after text."""
        flat = self.flat[layer]
        return flat[self._places().to(flat.device)].to(device, dtype)

    def put(self, layer: int, states: Tensor) -> None:
        """Keep (tokens of these texts, hidden) states that enter this layer."""
        flat = self.flat[layer]
        flat[self._places().to(flat.device)] = states.to(flat)

    def _places(self) -> Tensor:
        """(tokens of these texts,) index of each token."""
        owner = torch.repeat_interleave(self.lengths)
        offset = torch.arange(len(owner)) - (self.lengths.cumsum(0) - self.lengths)[owner]
        return self.starts[owner] + offset

    def rows(self, index: Tensor) -> KeptStates:
        """These texts, in this order."""
        index = index.cpu()
        return self._replace(starts=self.starts[index], lengths=self.lengths[index])


def room_for_states(
    lengths: Tensor,
    layers: Sequence[int],
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    limit: float,
    directory: Path | None,
) -> KeptStates:
    """Make room for the states of texts of these lengths (texts,). More than `limit` bytes of them are in a file, which
    has no name in `directory` (None: the system's temporary one) and goes when the states do."""
    lengths = lengths.cpu()
    shape = (int(lengths.sum()), hidden)
    on_disk = len(layers) * math.prod(shape) * dtype.itemsize > limit
    make = partial(_in_file, shape, dtype, directory) if on_disk else partial(_in_memory, shape, dtype, device)
    flat = {layer: make() for layer in layers}
    return KeptStates(flat, lengths.cumsum(0) - lengths, lengths)


def _in_memory(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError:  # of a GPU
        return torch.empty(shape, dtype=dtype)


def _in_file(shape: tuple[int, int], dtype: torch.dtype, directory: Path | None) -> Tensor:
    file, name = tempfile.mkstemp(prefix=".trunk_states_", dir=directory)
    os.close(file)
    try:
        return torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    finally:
        os.unlink(name)  # the mapping keeps it
