from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BambaConfig,
    Gemma3Config,
    Gemma4TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from policy.reading.twin import tiny_config, tiny_twin


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


TEXT = torch.randint(10, 97, (1, 30), generator=torch.Generator().manual_seed(0))


def test_a_twin_has_small_sizes_and_the_given_switches() -> None:
    config = LlamaConfig(num_key_value_heads=8, attention_bias=True, tie_word_embeddings=True, hidden_act="gelu")
    small = tiny_config(config)
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads) == (32, 4, 2)
    assert (small.num_hidden_layers, small.vocab_size, small.max_position_embeddings) == (2, 97, 64)
    assert small.attention_bias and small.tie_word_embeddings and small.hidden_act == "gelu"


def test_the_given_config_and_the_random_generators_stay_as_they_were() -> None:
    config = Gemma3Config()
    before, state = copy.deepcopy(config.to_dict()), torch.get_rng_state()
    tiny_twin(config)
    assert config.to_dict() == before and torch.equal(torch.get_rng_state(), state)


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (logits(tiny_twin(GPT2Config(), seed), TEXT) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_its_distributions_are_far_from_uniform() -> None:
    entropy = torch.distributions.Categorical(logits=logits(tiny_twin(LlamaConfig()), TEXT)).entropy()
    assert entropy.mean() < 0.8 * torch.tensor(97.0).log()


def test_a_scale_on_the_logits_takes_part() -> None:
    plain, scaled = (logits(tiny_twin(GraniteConfig(logits_scaling=by)), TEXT) for by in (1.0, 8.0))
    torch.testing.assert_close(plain / 8, scaled)


def test_a_window_is_shrunken_to_eight_tokens() -> None:
    model = tiny_twin(MistralConfig(sliding_window=4096, num_hidden_layers=1))
    changed = TEXT.clone()
    changed[0, 0] = 10 if TEXT[0, 0] != 10 else 11
    same = (logits(model, TEXT) == logits(model, changed)).all(-1)[0]
    assert not same[:8].any() and same[8:].all()


def test_one_layer_of_each_kind_is_kept_in_order() -> None:
    config = Qwen2Config(use_sliding_window=True, sliding_window=4096, max_window_layers=20)
    small = tiny_config(config)
    assert small.layer_types == ["full_attention", "sliding_attention"] and small.max_window_layers == 1
    assert tiny_config(BambaConfig(attn_layer_indices=[9, 18])).attn_layer_indices == [1]


def test_a_layers_own_sizes_stay_larger_than_the_others() -> None:
    small = tiny_config(Gemma4TextConfig())
    assert [layer.head_dim for layer in small.per_layer_config] == [8, 16]


def test_a_longrope_is_extended_after_twelve_tokens() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = Phi3Config(
        rope_parameters={"rope_type": "longrope", **factors},
        original_max_position_embeddings=4096,
        max_position_embeddings=131072,
    )
    model = tiny_twin(config)
    whole = logits(model, TEXT)
    assert torch.allclose(logits(model, TEXT[:, :20]), whole[:, :20], atol=1e-4)
    assert not torch.allclose(logits(model, TEXT[:, :12]), whole[:, :12], atol=1e-2)


def test_special_tokens_get_places_in_the_vocabulary() -> None:
    small = tiny_config(
        LlamaConfig(vocab_size=128256, bos_token_id=128000, eos_token_id=[128001, 128009], pad_token_id=5)
    )
    assert small.bos_token_id == 96 and small.eos_token_id == [95, 94] and small.pad_token_id == 5


def test_a_config_that_cannot_be_built_is_a_value_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="no tiny") as caught:
        tiny_twin(PreTrainedConfig())
    assert "\n" not in str(caught.value)
