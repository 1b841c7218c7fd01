"""Tries whether an architecture can be read in two parts, as a frozen trunk needs (policy/reading/freezing.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.reading.freezing import can_be_parted, names_above
from policy.reading.trunk import layers_of
from policy.reading.twin import tiny_twin
from scripts.conformance.configs import NOT_TRIED, config_of


class Parts(NamedTuple):
    """What was found for one architecture."""

    name: str
    state: str  # a key of FOUND


FOUND = {
    "exact": "exact",
    "differs": "refused: the upper layers do not give the same numbers",
    "no list": "refused: the layers are not in one list",
    "shared": "refused: layers share weights with layers below them",
    "not read": "not used at all, see the table",
}


def try_in_parts(name: str) -> Parts:
    """Read an architecture's twin in two parts, cut at every layer, and find what trains above each cut."""
    if name in NOT_TRIED:
        return Parts(name, "not read")
    config = config_of(name)
    try:
        exact = can_be_parted(config, torch.device("cpu"))
    except (ModelError, ValueError):
        return Parts(name, "not read")
    twin = tiny_twin(config)
    try:
        cuts = range(1, len(layers_of(twin)[1]))
    except ModelError:
        return Parts(name, "no list")
    if exact:
        return Parts(name, "exact")
    return Parts(name, "shared" if any(shares_weights(twin, cut) for cut in cuts) else "differs")


def shares_weights(model: PreTrainedModel, cut: int) -> bool:
    """Whether a layer above the cut has weights of what is below it."""
    try:
        names_above(model, cut)
    except ModelError:
        return True
    except Exception:  # what an architecture does not support fails in ways that cannot be listed
        return False
    return False
