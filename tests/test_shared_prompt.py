from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
)

from reward.normalisation import RewardNormalisation
from reward.scalar_model import store_normalisation
from reward.shared_prompt import PackedAnswers, can_share_prompt, pack_answers, packed_scores

PAD, VOCABULARY = 0, 50
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama eager": LlamaConfig(**LLAMA, num_key_value_heads=2, attn_implementation="eager"),
    "llama sdpa": LlamaConfig(**LLAMA, num_key_value_heads=2, attn_implementation="sdpa"),
    "gpt-2, learned positions": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0),
    "gpt-neox, part of a head turned": GPTNeoXConfig(**LLAMA, max_position_embeddings=128),
}


def scalar_model(config: PretrainedConfig) -> Any:
    config.vocab_size, config.num_labels, config.pad_token_id, config.initializer_range = VOCABULARY, 1, PAD, 0.3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    store_normalisation(model, RewardNormalisation())
    return model


def rankings(shape: list[tuple[int, list[int]]]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """(prompt length, answer lengths) -> random ids."""
    rng = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (n,), generator=rng).tolist()

    return [ids(prompt) for prompt, _ in shape], [[ids(n) for n in answers] for _, answers in shape]


RAGGED = [(9, [4, 1, 7]), (1, [2, 2]), (20, [3, 12, 5, 8, 1, 6, 2, 9, 4]), (5, [6])]


def one_by_one(model: Any, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """The score of each text alone, without mask or padding, by the model's own classes."""
    rows = [prompt + answer for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_scores_are_those_of_each_text_alone(config: PretrainedConfig) -> None:
    model = scalar_model(config)
    prompts, answers = rankings(RAGGED)
    packed = pack_answers(prompts, answers, PAD, hidden_size=10**6)
    assert packed.ids.shape == (2, 20 + 50)  # the longest has a row to itself, the three others share one
    expected = one_by_one(model, prompts, answers)
    assert expected.std() > 0.1  # scores that differ, so that mixing them up would show
    torch.testing.assert_close(packed_scores(model, packed), expected, atol=1e-5, rtol=1e-5)
    assert can_share_prompt(model, longest=32)


def test_packed_gradients_are_those_of_each_text_alone() -> None:
    model = scalar_model(CONFIGS["llama eager"])
    prompts, answers = rankings(RAGGED)
    weights = torch.linspace(-1, 1, sum(len(own) for own in answers))
    gradients = []
    for scores in (
        packed_scores(model, pack_answers(prompts, answers, PAD, 10**6)),
        one_by_one(model, prompts, answers),
    ):
        model.zero_grad()
        (scores * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm()


def test_nine_answers_cost_their_distinct_tokens() -> None:
    prompts, answers = rankings([(100, [10] * 9)])
    assert pack_answers(prompts, answers, PAD, hidden_size=128).ids.shape == (1, 100 + 90)


def test_a_row_ends_where_its_attention_would_cost_more_than_the_prompt_again() -> None:
    """A short prompt with long answers: at width w attention adds w / (6 hidden) of a token's cost."""
    prompts, answers = rankings([(10, [300] * 4)])
    packed = pack_answers(prompts, answers, PAD, hidden_size=32)
    assert packed.ids.shape == (4, 310) and int(packed.segments.max()) == 2
    model = scalar_model(LlamaConfig(**LLAMA, attn_implementation="sdpa"))
    torch.testing.assert_close(packed_scores(model, packed), one_by_one(model, prompts, answers), atol=1e-5, rtol=1e-5)


def test_beyond_a_window_prompts_are_read_again_and_within_it_they_are_shared() -> None:
    """A mask of our own takes the place of the model's, which would hide what lies before the window."""
    window = {"num_key_value_heads": 2, "sliding_window": 12, "attn_implementation": "sdpa"}
    model = scalar_model(MistralConfig(**LLAMA, **window))
    prompts, answers = rankings([(6, [5, 6, 5]), (40, [30, 25])])
    assert not can_share_prompt(model, longest=13) and can_share_prompt(model, longest=12)
    apart = pack_answers(prompts, answers, PAD, 10**6, share=False)
    torch.testing.assert_close(packed_scores(model, apart), one_by_one(model, prompts, answers), atol=1e-5, rtol=1e-5)
    within, own = prompts[:1], answers[:1]
    shared = pack_answers(within, own, PAD, 10**6)
    torch.testing.assert_close(packed_scores(model, shared), one_by_one(model, within, own), atol=1e-5, rtol=1e-5)


def test_the_check_leaves_the_model_in_its_mode() -> None:
    model = scalar_model(CONFIGS["llama eager"]).train()
    assert can_share_prompt(model, longest=32) and model.training


def test_tokens_and_order_are_kept() -> None:
    prompts, answers = rankings(RAGGED)
    packed = pack_answers(prompts, answers, PAD, 10**6)
    flat = [answer for own in answers for answer in own]
    owner = [i for i, own in enumerate(answers) for _ in own]
    assert isinstance(packed, PackedAnswers) and len(packed.row) == len(flat)
    for i, (row, end) in enumerate(zip(packed.row.tolist(), packed.column.tolist(), strict=True)):
        segment = int(packed.segments[row, end])
        own = packed.segments[row] == segment
        assert packed.ids[row][own].tolist() == flat[i]
        first = len(prompts[owner[i]])
        assert packed.positions[row][own].tolist() == list(range(first, first + len(flat[i])))
        prompt = packed.segments[row] == int(packed.prompts[row, end])
        assert packed.ids[row][prompt].tolist() == prompts[owner[i]]
