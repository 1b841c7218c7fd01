"""A cache of keys and values with room for the tokens to come.

transformers' `DynamicLayer` copies all keys and values for each new token. Here a layer has room for more, writes a new
token behind the others, and gives views of what is filled: the same numbers without the copies.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens by which a full layer grows


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with room; `keys` and `values` (rows, heads, tokens, width) are views. Not differentiable."""

    keys: Tensor
    values: Tensor
    _room: list[Tensor]  # (rows, heads, room, width) of keys, and of values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens (rows, heads, new, width), and return those of all tokens."""
        filled, new = self.get_seq_length(), key_states.shape[-2]
        if not filled:
            self.lazy_initialization(key_states, value_states)
            self._make_room(key_states, value_states, new + ROOM)
        else:
            if filled + new > self._room[0].shape[-2]:
                self._make_room(self.keys, self.values, filled + new + ROOM)
            for room, states in zip(self._room, (key_states, value_states), strict=True):
                room[..., filled : filled + new, :] = states
        self.keys, self.values = (room[..., : filled + new, :] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows (n,), in this order."""
        if filled := self.get_seq_length():
            self._make_room(self.keys[beam_idx], self.values[beam_idx], self._room[0].shape[-2])
            self.keys, self.values = (room[..., :filled, :] for room in self._room)

    def _make_room(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        """Copy these into new room for this many tokens."""
        self._room = []
        for states in (keys, values):
            room = states.new_empty(*states.shape[:-2], tokens, states.shape[-1])
            room[..., : states.shape[-2], :] = states
            self._room.append(room)


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that `DynamicCache` makes for a model, with room in its plain layers; those with a window or a state of
    their own stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
