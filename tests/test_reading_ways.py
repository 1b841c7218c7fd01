"""How models are read: right values on models whose logits, windows, states and rope are not those of Llama."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)

from policy.answer_likelihood import Question, answer_logprobs
from policy.errors import ModelError
from policy.pretraining import pretraining_loss
from policy.reading.states import states_of_sequences
from policy.reading.trials import Reading
from policy.reading.twin import tiny_twin
from policy.reading.ways import reading_of, readings_of_config, slower_ways
from policy.sampling.rollout import as_rollout, collect_rollout, response_logprobs
from reward.shared_prompt import can_share_prompt

LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"vocab_size": 97, "pad_token_id": 0}
SCALED = {
    "granite": GraniteConfig(**SHAPE, logits_scaling=8.0),
    "gemma 2": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=5.0),
}


def spread(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose logits are far apart, so that a scale or cap matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.5)
    return model


@torch.no_grad()
def own_logprobs(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """(answer,) by the model's own forward pass of this text."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


@pytest.mark.parametrize("config", SCALED.values(), ids=SCALED)
def test_scales_and_caps_of_logits_are_in_every_log_probability(config: PreTrainedConfig) -> None:
    model = spread(config)
    head = model.get_output_embeddings().weight
    prompt, answer = [5, 6, 7], [8, 9]
    want = own_logprobs(model, prompt, answer)
    without = model.base_model(torch.tensor([prompt + answer])).last_hidden_state[0, 2:4] @ head.T
    assert (without.log_softmax(-1)[[0, 1], answer] - want).abs().max() > 0.5  # head(states) alone is wrong here
    found = response_logprobs(model, as_rollout([prompt], [answer], 0, torch.device("cpu")), 1.0)
    torch.testing.assert_close(found.logprobs[0], want)
    [[total]] = answer_logprobs(model, [Question(prompt, [answer])], tokens_at_once=100)
    assert total == pytest.approx(float(want.sum()), rel=1e-5)
    text = torch.tensor([[5, 6, 7, 8, 9]])
    assert pretraining_loss(model, text).item() == pytest.approx(-own_logprobs(model, [5], [6, 7, 8, 9]).mean().item())
    assert reading_of(model).logits == "own forward"


def test_the_gradient_of_a_capped_log_probability_is_that_of_the_model_itself() -> None:
    model = spread(SCALED["gemma 2"])
    rollout = as_rollout([[5, 6, 7]], [[8, 9]], 0, torch.device("cpu"))
    gradients = []
    for own in (False, True):
        model.zero_grad()
        if own:
            logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4]
            logits.log_softmax(-1)[[0, 1], [8, 9]].sum().backward()
        else:
            response_logprobs(model, rollout, 1.0).logprobs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def sampled_logits(
    model: PreTrainedModel, prompts: list[list[int]], **settings: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """(answer, the logits each of its tokens had been drawn from by a model that reads the whole text)."""
    rollout = collect_rollout(
        model,
        prompts,
        max_new_tokens=6,
        temperature=1e-4,
        batch_size=8,
        stop_ids=tuple(range(0, 97, 4)),  # so that some answers end early
        pad_id=0,
        rng=torch.Generator().manual_seed(3),
        **settings,
    )
    for i, length in enumerate(rollout.lengths.tolist()):
        prompt = rollout.prompts[i][rollout.prompt_mask[i]]
        answer = rollout.responses[i, :length]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0]
        yield answer, logits[len(prompt) - 1 : -1]


WITH_STATES = {
    "mamba": MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8),
    "linear and full attention": Qwen3_5TextConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
}
ROPE = Phi3Config(**SHAPE, rope_parameters=LONGROPE, max_position_embeddings=64, original_max_position_embeddings=16)


@pytest.mark.parametrize("config", WITH_STATES.values(), ids=WITH_STATES)
@pytest.mark.parametrize("answers_each", [1, 3])
def test_every_token_is_drawn_from_what_the_whole_text_gives(config: PreTrainedConfig, answers_each: int) -> None:
    """At this temperature a token is the most likely one, by the model's own forward pass too, and rows end early."""
    prompts = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23], [30], [8, 9, 10]]
    found = list(sampled_logits(spread(config), prompts, answers_each=answers_each))
    assert len({len(answer) for answer, _ in found}) > 1 and len(found) == 4 * answers_each
    for answer, logits in found:
        assert answer.tolist() == logits.argmax(-1).tolist()


def test_a_short_text_reads_the_same_beside_a_long_one_where_rope_depends_on_the_longest() -> None:
    model = spread(ROPE)
    texts = [torch.arange(10, 20), torch.arange(20, 50)]
    lengths = torch.tensor([10, 30])
    found = states_of_sequences(model, torch.cat(texts), lengths, torch.zeros_like(lengths), lengths)
    want = torch.cat([model.model(text[None]).last_hidden_state[0] for text in texts])
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    assert reading_of(model, longest=16) == Reading()  # within the length that rope was trained with
    assert reading_of(model, longest=17).rows == "equal"


def test_no_answer_is_sampled_across_the_length_at_which_all_of_a_text_is_read_anew() -> None:
    model = spread(ROPE)
    with pytest.raises(ModelError, match="beyond 16 tokens, and a prompt with its answer may have 18; lower"):
        list(sampled_logits(model, [list(range(10, 22))]))


def test_half_precision_hides_no_difference() -> None:
    """OPT counts positions in the attention mask, so texts in one row would count on; bfloat16 rounds coarsely."""
    config = OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert reading_of(AutoModelForCausalLM.from_config(config, dtype=dtype)).rows == "padded"
        assert reading_of(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype)) == Reading()


def test_a_window_does_not_slow_down_what_is_exact_with_it() -> None:
    config = MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=4096)
    assert readings_of_config(config) == (Reading(), Reading())


def test_a_model_that_reads_both_ways_is_refused() -> None:
    with pytest.raises(ModelError, match="both directions, as encoders such as BERT do"):
        readings_of_config(BertConfig(**SHAPE))


def test_a_model_without_a_twin_is_tried_itself_and_beyond_its_window_takes_no_short_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(config: PreTrainedConfig) -> PreTrainedModel:
        raise ValueError("no tiny one")

    monkeypatch.setattr("policy.reading.ways.tiny_twin", cannot)
    monkeypatch.setattr("reward.shared_prompt.tiny_twin", cannot)
    windowed, plain = (
        spread(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=window, max_position_embeddings=77))
        for window in (40, None)
    )
    assert reading_of(windowed, longest=40) == Reading() == reading_of(plain)
    assert reading_of(windowed, longest=41) == Reading(rows="equal", cache="none", prefix=False)
    assert can_share_prompt(plain, longest=1000)
    assert can_share_prompt(windowed, longest=40) and not can_share_prompt(windowed, longest=41)


def test_trials_leave_the_random_state_and_the_mode_alone() -> None:
    model = spread(LlamaConfig(**SHAPE)).train()
    before = torch.random.get_rng_state()
    assert reading_of(model) == Reading() and model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_slower_ways_are_named_with_their_reason() -> None:
    [line] = slower_ways(Reading(cache="none"))
    assert line.startswith("every sampled token reads its whole text again, since")
    assert slower_ways(Reading()) == []


def test_twins_are_the_same_each_time() -> None:
    first, second = (tiny_twin(LlamaConfig()).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
