"""Means over real tokens, whitening, and generalised advantage estimation. Masked-out positions of results are 0."""

from typing import NamedTuple

import torch
from torch import Tensor

from policy.errors import ModelError
from policy.maths.masks import check_mask


class Advantages(NamedTuple):
    advantages: Tensor  # (batch, response)
    returns: Tensor  # (batch, response) advantages (before any whitening) + values: the value model's targets


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the positions where `mask` is True: one number, or one per row with `dim`.

    Values outside the mask have no influence, even if NaN. Raises ModelError if the mask has no True at all; with
    `dim`, a row without True gives 0."""
    check_mask(values, mask)
    kept = torch.where(mask, values, 0.0)
    if dim is not None:
        return kept.sum(dim) / mask.sum(dim).clamp(min=1)
    count = mask.sum()
    if count == 0:
        raise ModelError(
            f"no real token among {mask.numel()} positions: texts are empty or cut before the response; drop them."
        )
    return kept.sum() / count


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n, not n - 1) over the positions where `mask` is True."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def whiten(values: Tensor, mask: Tensor | None = None, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale to variance 1 over real tokens; the mean becomes 0, or stays unchanged with `shift_mean=False`.

    Population variance, with eps inside the root, as lm-human-preferences `whiten`; n - 1 would not reproduce it."""
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    mean = masked_mean(values, mask)
    white = (values - mean) * torch.rsqrt(masked_var(values, mask) + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


@torch.no_grad()
def estimate_advantages(rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (Schulman 2016, eq. 16) over complete episodes. All (batch, response).

        delta[t] = r[t] + gamma V[t+1] - V[t]        A[t] = delta[t] + gamma lam A[t+1]        returns = A + V

    `values[t]` is the value before token t. After the last real token the value is 0: the episode is over. Rewards and
    values outside the mask have no influence. No gradient flows through the results."""
    check_mask(rewards, response_mask)
    check_mask(values, response_mask)
    rewards = torch.where(response_mask, rewards, 0.0)
    values = torch.where(response_mask, values, 0.0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for step in reversed(range(deltas.shape[1])):
        running = deltas[:, step] + gamma * lam * running
        advantages[:, step] = running
    advantages = torch.where(response_mask, advantages, 0.0)
    return Advantages(advantages, advantages + values)
