"""A rollout with the quantities that PPO computes from it before the first update."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from policy.sampling.rollout import Rollout


class Experience(NamedTuple):
    """A rollout with everything PPO computes from it before the first update. Tensors are (batch, response) with 0 at
    padding, except scores and parts."""

    rollout: Rollout
    scores: Tensor  # (batch,) weighted sum of the parts; without EOS, score_without_eos replaces the rewards in it
    parts: dict[str, Tensor]  # name -> (batch,) each part before its weight
    logprobs: Tensor  # under the policy that sampled
    entropy: Tensor
    kl: Tensor  # k1 per token, nats
    values: Tensor
    advantages: Tensor  # whitened
    returns: Tensor
