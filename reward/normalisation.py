"""Put rewards on a defined scale, so that PPO's KL penalty has a defined strength.

Training leaves the zero of rewards arbitrary. InstructGPT (section 3.5) puts it at the demonstrations' mean score;
lm-human-preferences sets mean and spread on samples of the reference policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.errors import ModelError


@dataclass(frozen=True)
class RewardNormalisation:
    """normalised = gain * reward + bias."""

    gain: float = 1.0
    bias: float = 0.0

    def __call__(self, rewards: Tensor) -> Tensor:
        return self.gain * rewards + self.bias


def from_demonstrations(rewards: Tensor | Sequence[float]) -> RewardNormalisation:
    """Bias only: the demonstrations, whose raw rewards are given, get mean 0 (InstructGPT)."""
    return RewardNormalisation(gain=1.0, bias=-_checked(rewards).mean().item())


def from_reference_samples(
    rewards: Tensor | Sequence[float], target_mean: float = 0.0, target_std: float = 1.0
) -> RewardNormalisation:
    """Gain and bias: reference-policy samples get the target mean and population standard deviation (Ziegler 2019)."""
    raw = _checked(rewards)
    if raw.min() == raw.max():
        raise ModelError(
            f"all {len(raw)} reference samples score {raw[0].item():.4g}: no gain can spread them; "
            "set reward_model.normalise_on: demonstrations"
        )
    gain = target_std / raw.std(correction=0).item()
    return RewardNormalisation(gain, target_mean - gain * raw.mean().item())


def _checked(rewards: Tensor | Sequence[float]) -> Tensor:
    raw = torch.as_tensor(rewards).detach().to("cpu", torch.float64).flatten()
    bad = int((~raw.isfinite()).sum())
    if len(raw) == 0:
        raise ModelError("there are no rewards to set a scale on; give at least one text to score.")
    if bad:
        raise ModelError(
            f"{bad} of {len(raw)} rewards are not finite, so they give no scale; lower reward_model's learning rate."
        )
    return raw
