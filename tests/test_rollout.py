from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from policy.encoding import pad
from policy.language_model import LanguageModel, load_language_model
from policy.sampling.rollout import Rollout, as_rollout, collect_rollout, output_head, response_logprobs

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
RESPONSES = [[20, 21, 22, 1], [23, 1], [1], [24, 25, 26, 27, 28, 29]]


def widen(rollout: Rollout, filler: Tensor) -> Rollout:
    """More padding than needed on both sides; `filler` (8,) are the ids under it."""
    n = len(rollout.prompts)
    more, none = filler.expand(n, -1), torch.zeros(n, len(filler), dtype=torch.bool)
    return Rollout(
        torch.cat([more, torch.where(rollout.prompt_mask, rollout.prompts, more[:, :1])], 1),
        torch.cat([none, rollout.prompt_mask], 1),
        torch.cat([torch.where(rollout.response_mask, rollout.responses, more[:, 1:2]), more], 1),
        torch.cat([rollout.response_mask, none], 1),
        rollout.ended,
    )


def expected_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """From plain logits of one text alone: log-probabilities of the response and entropies, (response,) each."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logs = (logits / temperature).log_softmax(-1)
    return logs[range(len(response)), response], -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("pad_id", [0, 1, 20])
def test_logprobs_are_those_of_the_text_alone_whatever_the_padding(
    tiny: LanguageModel, temperature: float, pad_id: int
) -> None:
    narrow = as_rollout(PROMPTS, RESPONSES, pad_id, CPU)
    wide = widen(narrow, torch.randint(0, 197, (8,), generator=torch.Generator().manual_seed(0)))
    for rollout in (narrow, wide):
        got = response_logprobs(tiny.model, rollout, temperature)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            for part, expected in zip(got, expected_logprobs(tiny.model, prompt, response, temperature), strict=True):
                assert part.dtype == torch.float32
                torch.testing.assert_close(part[row, : len(response)], expected, atol=1e-5, rtol=1e-5)
                assert (part[row, len(response) :] == 0).all()


def test_a_model_that_counts_its_positions_reads_and_writes_alike_under_padding() -> None:
    """Where a text starts is plain to a model with learned positions; rotary ones would forgive a shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        model = GPT2LMHeadModel(config).eval()
    got = response_logprobs(model, widen(as_rollout(PROMPTS, RESPONSES, 0, CPU), torch.arange(8)), 1.0).logprobs
    settings = {"max_new_tokens": 6, "temperature": 1e-5, "stop_ids": [], "pad_id": 0, "rng": torch.Generator()}
    together = collect_rollout(model, PROMPTS, batch_size=4, **settings)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected, _ = expected_logprobs(model, prompt, response, 1.0)
        torch.testing.assert_close(got[row, : len(response)], expected, atol=1e-5, rtol=1e-5)
        alone = collect_rollout(model, [prompt], batch_size=1, **settings)
        assert together.responses[row].tolist() == alone.responses[0].tolist()


def test_the_gradient_of_a_logprob_is_that_of_plain_logits(tiny_base: Any) -> None:
    rollout = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    weights = torch.randn(rollout.responses.shape, generator=torch.Generator().manual_seed(0)) * rollout.response_mask
    grads = []
    for plain in (False, True):
        model = load_language_model(tiny_base, CPU).model
        if plain:
            terms = []
            for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
                logs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                terms.append((logs[range(len(response)), response] * weights[row, : len(response)]).sum())
            torch.stack(terms).sum().backward()
        else:
            (response_logprobs(model, rollout, 1.0).logprobs * weights).sum().backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_on_the_head_counts(tiny_base: Any) -> None:
    """A recipe cannot put one there; a model given from Python may have one."""
    adapters = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(load_language_model(tiny_base, CPU).model, adapters).get_base_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    assert not isinstance(output_head(model), Tensor)
    got = response_logprobs(model, as_rollout(PROMPTS, RESPONSES, 0, CPU), 1.0).logprobs
    expected, _ = expected_logprobs(model, PROMPTS[0], RESPONSES[0], 1.0)
    torch.testing.assert_close(got[0, :4], expected, atol=1e-5, rtol=1e-5)


def test_choosing_rows_trims_padding_and_changes_nothing(tiny: LanguageModel) -> None:
    whole = widen(
        as_rollout(PROMPTS, RESPONSES, 0, CPU)._replace(ended=torch.tensor([1, 1, 1, 0]).bool()), torch.arange(8)
    )
    index = torch.tensor([2, 0])
    part = whole.rows(index)
    assert part.prompts.shape == (2, 5) and part.responses.shape == (2, 4)
    for place, row in enumerate(index.tolist()):
        assert part.prompts[place][part.prompt_mask[place]].tolist() == PROMPTS[row]
        assert part.responses[place][part.response_mask[place]].tolist() == RESPONSES[row]
    assert part.lengths.tolist() == [1, 4] and part.ended.tolist() == [True, True]
    before = response_logprobs(tiny.model, whole, 1.0).logprobs[index, :4]
    torch.testing.assert_close(response_logprobs(tiny.model, part, 1.0).logprobs, before, atol=1e-5, rtol=1e-5)


def collect(tiny: LanguageModel, prompts: list[list[int]], **settings: Any) -> Rollout:
    plain = {"max_new_tokens": 8, "temperature": 1e-5, "batch_size": 2, "stop_ids": [1], "pad_id": 0}
    return collect_rollout(tiny.model, prompts, rng=torch.Generator().manual_seed(0), **plain | settings)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_prompt_gets_its_own_answer_whatever_shares_its_batch(tiny: LanguageModel, batch_size: int) -> None:
    eos = int(collect(tiny, PROMPTS[:1]).responses[0, 2])  # the first answer ends at its third token
    together = collect(tiny, PROMPTS, batch_size=batch_size, stop_ids=[eos])
    assert together.ended.any() and not together.ended.all()
    for row, prompt in enumerate(PROMPTS):
        alone = collect(tiny, [prompt], stop_ids=[eos])
        assert together.prompts[row][together.prompt_mask[row]].tolist() == prompt
        assert together.responses[row][together.response_mask[row]].tolist() == alone.responses[0].tolist()
        assert together.ended[row] == alone.ended[0]


def test_a_padding_id_that_is_also_a_real_token_does_no_harm(tiny: LanguageModel) -> None:
    free = collect(tiny, PROMPTS)
    drawn = int(free.responses[0, 0])
    for pad_id in (drawn, PROMPTS[2][0], 1):
        got = collect(tiny, PROMPTS, pad_id=pad_id)
        assert torch.equal(got.response_mask, free.response_mask) and torch.equal(got.prompt_mask, free.prompt_mask)
        assert torch.equal(got.responses[got.response_mask], free.responses[free.response_mask])
        assert got.prompts[~got.prompt_mask].eq(pad_id).all()


def test_a_rollout_and_the_texts_it_holds_read_the_same(tiny: LanguageModel) -> None:
    """At the first minibatch PPO's ratio is 1: what was sampled is what is read again."""
    rollout = collect(tiny, PROMPTS, temperature=1.0)
    responses = [row[:length].tolist() for row, length in zip(rollout.responses, rollout.lengths.tolist(), strict=True)]
    again = as_rollout(PROMPTS, responses, 0, CPU)
    assert torch.equal(again.response_mask, rollout.response_mask)
    assert torch.equal(again.prompts, pad(PROMPTS, 0, "left").ids)
    first, second = (response_logprobs(tiny.model, each, 1.0).logprobs for each in (rollout, again))
    assert torch.equal(first, second)


def test_several_answers_to_a_prompt_are_those_of_the_prompt_repeated(tiny: LanguageModel) -> None:
    """Greedy: every copy is the prompt's one answer. At temperature 1: the draws are those of as many rows."""
    greedy = collect(tiny, PROMPTS, batch_size=4, answers_each=3)
    for row, prompt in enumerate(PROMPTS):
        alone = collect(tiny, [prompt])
        for copy in range(row * 3, row * 3 + 3):
            assert greedy.prompts[copy][greedy.prompt_mask[copy]].tolist() == prompt
            assert greedy.responses[copy].tolist() == alone.responses[0].tolist()
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    drawn = collect(tiny, PROMPTS, temperature=1.0, batch_size=100, answers_each=3)
    apart = collect(tiny, repeated, temperature=1.0, batch_size=100)
    assert torch.equal(drawn.responses, apart.responses) and torch.equal(drawn.prompts, apart.prompts)
    assert len({tuple(row) for row in drawn.responses.tolist()}) > len(PROMPTS)
