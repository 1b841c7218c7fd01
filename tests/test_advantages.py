import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from policy.errors import ModelError
from policy.maths.advantages import estimate_advantages, masked_mean, masked_var, whiten
from policy.maths.masks import mask_from_lengths

BATCH, WIDTH = 3, 5
floats = arrays(np.float64, (BATCH, WIDTH), elements=st.floats(-10, 10, width=16)).map(torch.from_numpy)
masks = st.lists(st.integers(1, WIDTH), min_size=BATCH, max_size=BATCH).map(
    lambda lengths: mask_from_lengths(torch.tensor(lengths), WIDTH)
)
quick = settings(max_examples=25, deadline=None)


@quick
@given(floats, floats, masks)
def test_with_no_discounting_advantage_plus_value_is_reward_to_go(
    rewards: Tensor, values: Tensor, mask: Tensor
) -> None:
    advantages, returns = estimate_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    reward_to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, reward_to_go)
    torch.testing.assert_close(advantages + values * mask, reward_to_go)


@quick
@given(floats, floats, masks, st.floats(0, 1))
def test_with_lambda_zero_the_advantage_is_the_one_step_error(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float
) -> None:
    advantages = estimate_advantages(rewards, values, mask, gamma, lam=0.0).advantages
    for row in range(BATCH):
        length = int(mask[row].sum())
        for t in range(length):
            after = values[row, t + 1] if t + 1 < length else 0.0
            torch.testing.assert_close(advantages[row, t], rewards[row, t] + gamma * after - values[row, t])


@quick
@given(floats, floats, masks, st.sampled_from([torch.nan, torch.inf, 1e30]))
def test_garbage_after_the_end_has_no_influence(rewards: Tensor, values: Tensor, mask: Tensor, garbage: float) -> None:
    clean = estimate_advantages(rewards, values, mask, 0.99, 0.9)
    dirty = estimate_advantages(rewards.where(mask, garbage), values.where(mask, garbage), mask, 0.99, 0.9)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (a[~mask] == 0).all()


def test_advantages_are_constants() -> None:
    values = torch.zeros(1, 2, requires_grad=True)
    result = estimate_advantages(torch.ones(1, 2), values, torch.ones(1, 2, dtype=torch.bool), 1.0, 0.95)
    assert not result.advantages.requires_grad and not result.returns.requires_grad


@quick
@given(floats, masks)
def test_whitened_values_have_mean_zero_and_variance_one_over_real_tokens(values: Tensor, mask: Tensor) -> None:
    white = whiten(values, mask)
    kept = values[mask].numpy()
    assert (white[~mask] == 0).all()
    assert abs(white[mask].mean().item()) < 1e-8
    if kept.var() > 1e-3:
        np.testing.assert_allclose(white[mask].numpy().var(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(whiten(values, mask, shift_mean=False)[mask], white[mask] + kept.mean(), atol=1e-9)


@quick
@given(floats, masks)
def test_masked_mean_and_variance_are_those_of_the_selected_numbers(values: Tensor, mask: Tensor) -> None:
    dirty = values.where(mask, torch.nan)
    np.testing.assert_allclose(masked_mean(dirty, mask), values[mask].numpy().mean(), atol=1e-9)
    np.testing.assert_allclose(masked_var(dirty, mask), values[mask].numpy().var(), atol=1e-9)


def test_equal_values_whiten_to_zero() -> None:
    assert whiten(torch.full((2, 2), 0.5)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_mask_without_a_real_token_is_an_error_and_such_a_row_is_zero() -> None:
    values = torch.ones(2, 2)
    with pytest.raises(ModelError, match="no real token among 4 positions"):
        masked_mean(values, torch.zeros(2, 2, dtype=torch.bool))
    mask = torch.tensor([[True, False], [False, False]])
    assert masked_mean(values, mask, dim=1).tolist() == [1.0, 0.0]


def test_float32_stays_float32() -> None:
    values, mask = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert whiten(values, mask).dtype == torch.float32
    assert estimate_advantages(values, values, mask, 1.0, 0.95).returns.dtype == torch.float32
