from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from policy.reading.packing import pack_lengths
from policy.reading.states import states_of_sequences
from policy.reading.ways import reads_packed

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama eager": LlamaConfig(**SHAPE, attn_implementation="eager"),
    "llama sdpa": LlamaConfig(**SHAPE, attn_implementation="sdpa"),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
    "mistral with a window": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=3),
    "gpt-2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt-neox": GPTNeoXConfig(**SHAPE, max_position_embeddings=64),
    "opt": OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32),
}
LENGTHS = [3, 9, 1, 4, 4, 2, 8, 5]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([0, 40, 64]))
def test_sequences_fit_into_their_rows_without_overlap(lengths: list[int], width: int) -> None:
    places = pack_lengths(lengths, width)
    assert places.width == (width or max(lengths))
    taken = torch.zeros(places.n_rows, places.width, dtype=torch.int)
    for length, row, column in zip(lengths, places.row, places.column, strict=True):
        assert column + length <= places.width
        taken[row, column : column + length] += 1
    assert int(taken.max()) == 1 and (taken.sum(1) > 0).all()
    # No two rows could be one: of any two rows, the contents together are wider than a row.
    held = taken.sum(1).sort().values
    assert len(held) == 1 or int(held[0] + held[1]) > places.width


def test_few_tokens_are_padding_among_many_sequences() -> None:
    lengths = torch.randint(8, 48, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    places = pack_lengths(lengths, 64)
    assert sum(lengths) / (places.n_rows * 64) > 0.97


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_states_are_those_of_each_sequence_alone(config: PretrainedConfig) -> None:
    config.vocab_size, config.initializer_range = 50, 0.3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    rng = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 50, (n,), generator=rng) for n in LENGTHS]
    lengths = torch.tensor(LENGTHS)
    start = torch.tensor([0, 2, 0, 3, 0, 1, 7, 2])
    got = states_of_sequences(model, torch.cat(sequences), lengths, start, lengths)
    body = getattr(model, model.base_model_prefix)
    expected = [body(row[None]).last_hidden_state[0, first:] for row, first in zip(sequences, start, strict=True)]
    torch.testing.assert_close(got, torch.cat(expected), atol=2e-5, rtol=1e-4)


def test_a_model_that_cannot_read_packed_rows_is_found_out() -> None:
    """OPT counts positions in the attention mask, so a second sequence of a row would go on counting."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(CONFIGS["opt"])
    llama = AutoModelForCausalLM.from_config(CONFIGS["llama sdpa"])
    assert not reads_packed(model) and reads_packed(llama)
    assert model.training and llama.training
