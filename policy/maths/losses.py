"""Losses of the policy, the value model and the language model, each over real tokens only.

`n_tokens` is the token count of the whole optimiser step. Pass it if a batch is one of several micro-batches or belongs
to one of several processes: every result is then a sum over this part divided by that count, so the parts add up to the
result of the whole step, whatever their lengths. Without it the batch is the whole step.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from policy.maths.advantages import masked_mean, masked_var
from policy.maths.masks import check_mask


class PolicyLoss(NamedTuple):
    loss: Tensor  # the only one with a gradient
    clip_fraction: Tensor  # share of tokens whose clipped term is the larger one
    approx_kl: Tensor  # KL(old || new), half the mean squared log-ratio
    approx_kl_k3: Tensor  # KL(old || new), mean of ratio - 1 - log ratio
    mean_ratio: Tensor


class ValueLoss(NamedTuple):
    loss: Tensor  # the only one with a gradient
    clip_fraction: Tensor


def clipped_policy_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_range: float,
    n_tokens: int | Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate loss, mean over real response tokens (Schulman 2017, eq. 7). All (batch, response)."""
    losses, clipped = policy_token_losses(new_logprobs, old_logprobs, advantages, response_mask, clip_range)
    log_ratio = torch.where(response_mask, new_logprobs.detach() - old_logprobs, 0.0)
    return PolicyLoss(
        loss=_token_mean(losses, response_mask, n_tokens),
        clip_fraction=_token_mean(clipped.to(losses), response_mask, n_tokens).detach(),
        approx_kl=_token_mean(0.5 * log_ratio**2, response_mask, n_tokens),
        approx_kl_k3=_token_mean(log_ratio.expm1() - log_ratio, response_mask, n_tokens),
        mean_ratio=_token_mean(log_ratio.exp(), response_mask, n_tokens),
    )


def policy_token_losses(
    new_logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """-> (loss per token, True where the clipped term is strictly larger), each (batch, response); padding 0, False."""
    check_mask(new_logprobs, response_mask)
    # Mask before exp, and stop short of its overflow: infinity times a gradient or advantage of 0 would be NaN.
    log_ratio = torch.where(response_mask, new_logprobs - old_logprobs, 0.0)
    ratio = log_ratio.clamp(max=math.log(torch.finfo(log_ratio.dtype).max) - 1).exp()
    advantages = torch.where(response_mask, advantages, 0.0)
    unclipped_loss = -ratio * advantages
    clipped_loss = -ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return torch.maximum(unclipped_loss, clipped_loss), clipped_loss > unclipped_loss


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    clip_range: float | None,
    n_tokens: int | Tensor | None = None,
) -> ValueLoss:
    """Half the squared error, or that of the value clipped to `clip_range` around the old one if larger; token mean.

    All (batch, response); `clip_range=None` gives half the squared error without clipping. Source:
    lm-human-preferences `train_policy.py`; the clip range is in units of the reward."""
    losses, clipped = value_token_losses(values, old_values, returns, response_mask, clip_range)
    return ValueLoss(
        loss=0.5 * _token_mean(losses, response_mask, n_tokens),
        clip_fraction=_token_mean(clipped.to(losses), response_mask, n_tokens).detach(),
    )


def value_token_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    """-> (squared error per token, not halved; True where the clipped one is strictly larger); padding 0, False."""
    check_mask(values, response_mask)
    error = torch.where(response_mask, values - returns, 0.0) ** 2
    if clip_range is None:
        return error, torch.zeros_like(response_mask)
    near_old = torch.minimum(torch.maximum(values, old_values - clip_range), old_values + clip_range)
    clipped_error = torch.where(response_mask, near_old - returns, 0.0) ** 2
    return torch.maximum(error, clipped_error), clipped_error > error


def mean_entropy(entropy: Tensor, response_mask: Tensor, n_tokens: int | Tensor | None = None) -> Tensor:
    """Mean entropy over real response tokens, in nats. Times a coefficient it is the bonus subtracted from the loss.

    Both (batch, response). Source: Mnih et al. 2016."""
    return _token_mean(entropy, response_mask, n_tokens)


def next_token_loss(token_logprobs: Tensor, mask: Tensor, n_tokens: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in nats per token over the positions where `mask` is True (responses in SFT, all text in PPO-ptx).

    Both (batch, time); `token_logprobs[t]` and `mask[t]` belong to the same token."""
    return -_token_mean(token_logprobs, mask, n_tokens)


def ppo_loss(
    policy_loss: Tensor,
    value_loss: Tensor,
    value_coef: float,
    pretraining_loss: Tensor | None = None,
    pretraining_coef: float = 0.0,
) -> Tensor:
    """policy + value_coef * value + pretraining_coef * pretraining: InstructGPT eq. 2 as a loss to minimise.

    The paper does not say how the pretraining term is reduced; here it is a token mean, with the paper's 27.8."""
    loss = policy_loss + value_coef * value_loss
    return loss if pretraining_loss is None else loss + pretraining_coef * pretraining_loss


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - mean squared error / variance of the returns: 1 is perfect, 0 no better than their mean, below 0 worse.

    As logged by lm-human-preferences, so a constant offset counts as error. NaN if all returns are equal."""
    error = masked_mean((values - returns) ** 2, mask)
    variance = masked_var(returns, mask)
    return torch.where(variance > 0, 1 - error / variance, torch.nan)


def _token_mean(values: Tensor, mask: Tensor, n_tokens: int | Tensor | None) -> Tensor:
    if n_tokens is None:
        return masked_mean(values, mask)
    check_mask(values, mask)
    return torch.where(mask, values, 0.0).sum() / n_tokens
