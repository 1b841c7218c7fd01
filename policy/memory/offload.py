"""Keeps a frozen model's weights in memory only while it is read; otherwise they are in its checkpoint on disk.

PPO reads reference and reward model only briefly in each iteration; its memory peak, the update, needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


class Place(NamedTuple):
    """Where a weight's values begin in a file, as little-endian float32."""

    path: Path
    offset: int  # bytes


class WeightsOnDisk:
    """A model's weights and their places on disk. The weights are in memory until the context `loaded` ends for the
    first time; after that, only inside this context."""

    def __init__(self, weights: Mapping[str, nn.Parameter], places: Mapping[str, Place]) -> None:
        self.weights, self.places = weights, places
        self.shapes = {name: weight.shape for name, weight in weights.items()}

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Context in which the model has its weights."""
        for name, weight in self.weights.items():
            if not weight.numel():
                weight.data = self._read(name).to(weight.device)
        try:
            yield
        finally:
            for weight in self.weights.values():
                weight.data = torch.empty(0, device=weight.device)

    def _read(self, name: str) -> torch.Tensor:
        # Read into memory that the process already has; the pages of a memory map would come on top.
        path, offset = self.places[name]
        numbers = np.fromfile(path, "<f4", count=self.shapes[name].numel(), offset=offset)
        return torch.from_numpy(numbers).view(self.shapes[name])


def weights_on_disk(model: PreTrainedModel, directory: Path) -> WeightsOnDisk | None:
    """Find the model's weights in its checkpoint. Returns None, so that the model stays in memory, unless the files
    contain every weight under its name, in its shape and in float32 (a model from the hub may not)."""
    weights = dict(model.named_parameters())
    places: dict[str, Place] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:  # safetensors layout: 8 bytes with the header's length, the header, the values
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            weight = weights.get(name)
            if weight is not None and (entry["dtype"], entry["shape"]) == ("F32", list(weight.shape)):
                places[name] = Place(path, 8 + size + entry["data_offsets"][0])
    if any(weight.dtype != torch.float32 or name not in places for name, weight in weights.items()):
        return None
    return WeightsOnDisk(weights, places)
