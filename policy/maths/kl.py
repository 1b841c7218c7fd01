"""The KL penalty for moving away from the reference model, and the per-token rewards that contain it.

The score is added at the last real token. summarize_from_feedback_details and TRL add it one position later and so also
train the value after the end; `score_position="one_past"` reproduces them for parity tests and is not used otherwise.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from policy.maths.masks import check_mask, last_token_index

KlKind = Literal["k1", "k2", "k3"]
SMALLEST_STEP = 0.1  # of the adaptive coefficient, in one update


class TokenRewards(NamedTuple):
    rewards: Tensor  # (batch, response) -kl_coef * kl, plus the score at one position; 0 on padding
    kl: Tensor  # (batch, response) KL estimate per token in nats; 0 on padding; a row's sum is the sequence KL


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlKind) -> Tensor:
    """Estimate KL(policy || reference) per token, in nats, from tokens sampled by the policy. Same shape in and out.

    With x = log policy - log reference: k1 = x (unbiased, either sign), k2 = x^2 / 2 (biased, never negative),
    k3 = e^-x - 1 + x (unbiased, never negative). Source: Schulman, "Approximating KL divergence"."""
    x = logprobs - ref_logprobs
    if kind == "k1":
        return x
    if kind == "k2":
        return 0.5 * x**2
    if kind == "k3":
        return (-x).expm1() + x
    raise ValueError(f"there is no KL estimator '{kind}'; choose k1, k2 or k3.")


@torch.no_grad()
def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    kl_coef: float,
    kind: KlKind = "k1",
    score_position: Literal["last_token", "one_past"] = "last_token",
) -> TokenRewards:
    """Per-token rewards of PPO (InstructGPT section 3.5): -kl_coef * KL everywhere, plus the response's score once.

    scores (batch,); the others (batch, response). "one_past" adds the score after the last real token if there is room,
    else on it; advantages then need a mask that is one token longer. No gradient flows through the results."""
    check_mask(logprobs, response_mask)
    kl = torch.where(response_mask, kl_estimate(logprobs, ref_logprobs, kind), 0.0)
    index = last_token_index(response_mask)
    if score_position == "one_past":
        index = (index + 1).clamp(max=response_mask.shape[1] - 1)
    score_at_end = torch.zeros_like(kl).scatter_(1, index.unsqueeze(1), scores.to(kl).unsqueeze(1))
    return TokenRewards(score_at_end - kl_coef * kl, kl)


def replace_score_without_eos(scores: Tensor, found_eos: Tensor, penalty_score: float) -> Tensor:
    """(batch,) scores, with `penalty_score` in place of the score of each response without EOS.

    Replaced, not subtracted: a response cut off at the length limit is unfinished, so its score means nothing."""
    return torch.where(found_eos, scores, penalty_score)


def adaptive_kl_coef(coef: float, observed_kl: float, target: float, horizon: float, n_episodes: int) -> float:
    """Update the coefficient after a batch of `n_episodes` whose mean sequence KL (nats) was `observed_kl`.

    Changes by at most 20 % per `horizon` episodes to steer the KL towards `target`, and falls at most to a tenth in one
    update: without this limit a batch of five horizons or more would make it 0 or negative. Source: Ziegler 2019,
    section 2.2."""
    error = min(max(observed_kl / target - 1.0, -0.2), 0.2)
    return coef * max(1.0 + error * n_episodes / horizon, SMALLEST_STEP)
