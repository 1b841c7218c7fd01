import math

import pytest
import torch
from torch import Tensor

from policy.maths.losses import clipped_policy_loss, clipped_value_loss, explained_variance, next_token_loss
from policy.maths.masks import mask_from_lengths

MASK = mask_from_lengths(torch.tensor([4, 1, 2]), 4)
N_TOKENS = 7


def random(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_token(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def policy_gradient(ratio: float, advantage: float) -> float:
    new = one_token(ratio).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    clipped_policy_loss(new, one_token(0.0), one_token(advantage), mask, 0.2).loss.backward()
    assert new.grad is not None
    return new.grad.item()


def test_an_unchanged_policy_has_ratio_one_no_kl_no_clipping_and_the_plain_policy_gradient() -> None:
    new = random(0).requires_grad_()
    result = clipped_policy_loss(new, new.detach(), random(1), MASK, 0.2)
    assert (result.mean_ratio, result.approx_kl, result.approx_kl_k3, result.clip_fraction) == (1, 0, 0, 0)
    result.loss.backward()
    torch.testing.assert_close(new.grad, torch.where(MASK, -random(1) / N_TOKENS, 0.0))


@pytest.mark.parametrize("ratio, advantage", [(1.3, 1.0), (0.7, -1.0)])
def test_a_ratio_beyond_the_clip_range_sends_no_gradient(ratio: float, advantage: float) -> None:
    assert policy_gradient(ratio, advantage) == 0


@pytest.mark.parametrize("ratio, advantage", [(1.3, -1.0), (0.7, 1.0), (1.1, 1.0), (0.9, -1.0)])
def test_a_ratio_that_moved_the_wrong_way_or_not_far_still_does(ratio: float, advantage: float) -> None:
    assert policy_gradient(ratio, advantage) == pytest.approx(-ratio * advantage)


def test_only_the_loss_has_a_gradient() -> None:
    policy = clipped_policy_loss(random(0).requires_grad_(), random(1), random(2), MASK, 0.2)
    value = clipped_value_loss(random(0).requires_grad_(), random(1), random(2), MASK, 0.2)
    assert [t.requires_grad for t in policy] == [True, False, False, False, False]
    assert [t.requires_grad for t in value] == [True, False]


def all_results(new: Tensor, old: Tensor, goal: Tensor, mask: Tensor, n_tokens: int | Tensor | None) -> list[Tensor]:
    """Every number the three losses give, `goal` serving as advantages and as returns."""
    policy = clipped_policy_loss(new, old, goal, mask, 0.2, n_tokens)
    value = clipped_value_loss(new, old, goal, mask, 0.2, n_tokens)
    return [*policy, *value, next_token_loss(new, mask, n_tokens)]


@pytest.mark.parametrize("n_tokens", [N_TOKENS, torch.tensor(N_TOKENS)])
def test_micro_batches_of_unequal_length_add_up_to_the_whole_step(n_tokens: int | Tensor) -> None:
    new, old, goal = random(0), random(1), random(2)
    rows = [slice(i, i + 1) for i in range(3)]
    parts = [all_results(new[row], old[row], goal[row], MASK[row], n_tokens) for row in rows]
    sums = [torch.stack(numbers).sum() for numbers in zip(*parts, strict=True)]
    torch.testing.assert_close(sums, all_results(new, old, goal, MASK, None))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_garbage_in_the_padding_reaches_neither_loss_nor_gradient(garbage: float) -> None:
    def with_padding(filler: float) -> list[Tensor]:
        new, old, goal = (random(i).where(MASK, filler) for i in range(3))
        results = all_results(new.requires_grad_(), old, goal, MASK, None)
        return [*results, *torch.autograd.grad(sum((r for r in results if r.requires_grad), torch.zeros(())), new)]

    for clean, dirty in zip(with_padding(0.0), with_padding(garbage), strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("clip_range, gradient", [(0.2, 0.0), (None, -0.5)])
def test_a_value_beyond_the_clip_range_sends_no_gradient(clip_range: float | None, gradient: float) -> None:
    values = one_token(0.5).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    clipped_value_loss(values, one_token(0.0), one_token(1.0), mask, clip_range).loss.backward()
    assert values.grad is not None and values.grad.item() == gradient


def test_explained_variance_is_one_for_the_returns_and_zero_for_their_mean() -> None:
    returns = random(0).where(MASK, torch.nan)
    assert explained_variance(returns, returns, MASK) == 1
    mean = torch.full_like(returns, returns[MASK].mean().item())
    assert explained_variance(mean, returns, MASK).item() == pytest.approx(0, abs=1e-12)
    assert explained_variance(mean + 1, returns, MASK) < 0
    assert explained_variance(mean, torch.ones_like(mean), MASK).isnan()


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("log_ratio", [100.0, 1e4])
def test_a_ratio_that_overflows_gives_no_nan(advantage: float, log_ratio: float) -> None:
    new = torch.tensor([[log_ratio, 0.1]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = clipped_policy_loss(new, torch.zeros(1, 2), torch.tensor([[advantage, 1.0]]), mask, 0.2)
    found.loss.backward()
    assert found.loss.isfinite() and new.grad.isfinite().all()
    rest = -math.exp(0.1) / 2  # of the other token
    if advantage >= 0:
        assert found.loss.item() == pytest.approx(rest - 1.2 * advantage / 2)
    assert new.grad[0].tolist() == pytest.approx([0.0, rest])
