from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policy.encoding import Padded, pad
from policy.language_model import LanguageModel
from policy.sampling.generate import Responses, draw, sample_responses

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [20, 21, 22, 23, 24], [30, 31]]


def sample(model: Any, prompts: Padded, seed: int = 0, **settings: Any) -> Responses:
    plain = {"max_new_tokens": 12, "temperature": 1.0, "stop_ids": [], "pad_id": 0}
    rng = torch.Generator().manual_seed(seed)
    return sample_responses(model, prompts.ids, prompts.mask, rng=rng, **plain | settings)


@torch.no_grad()
def next_logits(model: Any, ids: list[int]) -> Tensor:
    """(time, vocabulary) of one text alone, without padding or cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def usual_end(model: Any, prompts: Padded) -> int:
    """A token that ends the greedy answers to these prompts at different steps, and not all of them."""
    answers = sample(model, prompts, temperature=1e-5).tokens
    for token in answers.unique().tolist():
        at = [row.index(token) if token in row else None for row in answers.tolist()]
        if None in at and len(set(at)) >= 4:
            return token
    raise AssertionError("no such token; choose other prompts")


@pytest.mark.parametrize("ends", [True, False])
def test_at_a_temperature_near_zero_answers_are_those_of_greedy_search(tiny: LanguageModel, ends: bool) -> None:
    prompts = pad(PROMPTS, 0, "left")
    stops = [usual_end(tiny.model, prompts)] if ends else []
    answers = sample(tiny.model, prompts, temperature=1e-5, stop_ids=stops)
    expected = tiny.model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask.long(),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=stops or -1,
        pad_token_id=0,
    )[:, prompts.ids.shape[1] :]
    assert answers.tokens.tolist() == expected.tolist()
    assert (len(set(answers.lengths.tolist())) >= 4) == ends


def test_a_length_counts_eos_and_what_follows_is_padding(tiny: LanguageModel) -> None:
    prompts = pad(PROMPTS, 0, "left")
    eos = usual_end(tiny.model, prompts)
    answers = sample(tiny.model, prompts, temperature=1e-5, stop_ids=[eos], pad_id=99)
    assert answers.ended.any() and not answers.ended.all()
    for row, length, ended in zip(*(part.tolist() for part in answers), strict=True):
        assert eos not in row[: length - 1]
        assert (row[length - 1] == eos) == ended
        assert ended or length == 12
        assert set(row[length:]) <= {99}


def test_when_all_have_ended_no_column_is_left_over(tiny: LanguageModel) -> None:
    prompts = pad([PROMPTS[0]] * 3, 0, "left")
    [first] = sample(tiny.model, pad(PROMPTS[:1], 0, "left"), temperature=1e-5, max_new_tokens=1).tokens[0].tolist()
    answers = sample(tiny.model, prompts, temperature=1e-5, stop_ids=[first])
    assert answers.tokens.tolist() == [[first]] * 3
    assert answers.lengths.tolist() == [1, 1, 1] and answers.ended.all()


def test_the_most_new_tokens_cut_an_answer(tiny: LanguageModel) -> None:
    prompts = pad(PROMPTS, 0, "left")
    for most in (1, 5):
        answers = sample(tiny.model, prompts, max_new_tokens=most)
        assert answers.tokens.shape == (len(PROMPTS), most)
        assert answers.lengths.tolist() == [most] * len(PROMPTS) and not answers.ended.any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_drawn_as_often_as_softmax_says(tiny: LanguageModel, temperature: float) -> None:
    n, ids = 4000, PROMPTS[2]
    drawn = sample(tiny.model, pad([ids] * n, 0, "left"), temperature=temperature, max_new_tokens=1).tokens[:, 0]
    expected = n * (next_logits(tiny.model, ids)[-1].double() / temperature).softmax(-1)
    counts = drawn.bincount(minlength=len(expected)).double()
    common = expected >= 5
    assert common.sum() >= 8  # a distribution that says something
    expected = torch.cat([expected[common], expected[~common].sum().view(1)])
    counts = torch.cat([counts[common], counts[~common].sum().view(1)])
    freedom = len(expected) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_those_of_multinomial(seed: int) -> None:
    probabilities = torch.randn(16, 5000, generator=torch.Generator().manual_seed(99)).mul(3).softmax(-1)
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(3):
        expected = torch.multinomial(probabilities, 1, generator=theirs).squeeze(1)
        assert torch.equal(draw(probabilities, ours), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_the_same_seed_draws_the_same_and_the_global_one_does_not_count(tiny: LanguageModel) -> None:
    prompts = pad(PROMPTS, 0, "left")
    torch.manual_seed(1)
    first = sample(tiny.model, prompts, seed=3).tokens
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(sample(tiny.model, prompts, seed=3).tokens, first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(sample(tiny.model, prompts, seed=4).tokens, first)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_that_leave_do_not_change_what_the_others_are_drawn_from(tiny: LanguageModel, seed: int) -> None:
    prompts = pad(PROMPTS * 2, 0, "left")
    eos = usual_end(tiny.model, pad(PROMPTS, 0, "left"))
    steps: list[torch.Tensor] = []
    hook = tiny.model.register_forward_hook(lambda *passed: steps.append(passed[-1].logits[:, -1]))
    answers = sample(tiny.model, prompts, seed, stop_ids=[eos], temperature=0.3)
    hook.remove()
    assert len(set(answers.lengths.tolist())) >= 3
    for row, (prompt, length) in enumerate(zip(PROMPTS * 2, answers.lengths.tolist(), strict=True)):
        alone = next_logits(tiny.model, prompt + answers.tokens[row, :length].tolist())
        for step in range(length):
            place = int((answers.lengths[:row] > step).sum())  # living rows keep their order
            torch.testing.assert_close(steps[step][place], alone[len(prompt) - 1 + step], atol=1e-4, rtol=1e-4)
    for step, logits in enumerate(steps):
        assert len(logits) == (answers.lengths > step).sum()
