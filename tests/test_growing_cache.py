"""The cache with room for the tokens to come: the same numbers as transformers' own, with fewer copies."""

from __future__ import annotations

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama
from transformers import DynamicCache, GPT2Config, MistralConfig, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from policy.sampling import growing_cache as module
from policy.sampling.growing_cache import GrowingLayer, growing_cache


def fed(layer: DynamicLayer, lengths: list[int], rows: list[list[int] | None]) -> list[torch.Tensor]:
    """What a layer gives for new tokens of these lengths; after some of them only certain rows stay."""
    rng = torch.Generator().manual_seed(0)
    batch, given = 3, []
    for length, kept in zip(lengths, rows, strict=True):
        keys = torch.randn(batch, 2, length, 4, generator=rng)
        values = torch.randn(batch, 2, length, 6, generator=rng)  # some models have values of another width
        given += [part.clone() for part in layer.update(keys, values)]
        if kept is not None:
            layer.reorder_cache(torch.tensor(kept))
            batch = len(kept)
            given += [layer.keys.clone(), layer.values.clone()]
    return given


@pytest.mark.parametrize("room", [1, 2, 64])
def test_it_gives_what_transformers_layer_gives(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Beyond its room, for several tokens at once, and for rows that leave or come twice."""
    monkeypatch.setattr(module, "ROOM", room)
    lengths, rows = [5, 1, 1, 3, 1, 1], [None, [2, 0], None, [1, 1, 0], None, None]
    ours, theirs = (fed(layer, lengths, rows) for layer in (GrowingLayer(), DynamicLayer()))
    assert len(ours) == len(theirs) == 16
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_a_new_token_does_not_copy_what_is_there() -> None:
    layer = GrowingLayer()
    places = set()
    for _ in range(10):
        keys, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        places.add(keys.data_ptr())
    assert len(places) == 1 and layer.get_seq_length() == 10


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (GPT2Config(n_layer=2), {GrowingLayer}),
        (MistralConfig(num_hidden_layers=2, sliding_window=8), {DynamicSlidingWindowLayer}),
    ],
)
def test_only_plain_layers_are_replaced(config: PreTrainedConfig, kinds: set[type]) -> None:
    assert {type(layer) for layer in growing_cache(config).layers} == kinds


@torch.no_grad()
def test_a_model_gives_the_same_logits_with_it() -> None:
    model = tiny_llama(byte_tokenizer())
    ids = torch.arange(24).view(2, 12)
    found = []
    for cache in (growing_cache(model.config), DynamicCache(config=model.config)):
        steps = [
            model(part, past_key_values=cache, use_cache=True).logits[:, -1] for part in ids.split([6, 1, 1, 4], 1)
        ]
        found.append(torch.stack(steps))
    assert torch.equal(*found)
