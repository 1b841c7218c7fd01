"""All that PPO computes from a rollout before it changes a weight."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from policy.sampling.rollout import Rollout


class Experience(NamedTuple):
    """A rollout and all that PPO computes from it before it changes a weight. Tensors (batch, response), filler 0,
    but for scores and parts."""

    rollout: Rollout
    scores: Tensor  # (batch,) what the reward is made of: the parts' sum, or the penalty for an answer without end
    parts: dict[str, Tensor]  # (batch,) each part of the sum by its name, before its weight
    logprobs: Tensor  # under the policy that sampled
    entropy: Tensor
    kl: Tensor  # k1 per token, nats
    values: Tensor
    advantages: Tensor  # whitened
    returns: Tensor
