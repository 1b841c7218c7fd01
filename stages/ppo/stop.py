"""Checks that stop PPO: numbers that are not finite, updates that move too far from the policy that sampled, and a
policy that has moved far enough from the SFT model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from policy.errors import ModelError
from stages.ppo.experience import Experience
from stages.ppo.settings import PpoConfig

logger = logging.getLogger("triptych.ppo")


class Rounding(NamedTuple):
    """Largest difference that rounding explains when one model reads the same text in two layouts; minibatch means."""

    ratio: float
    approx_kl: float
    clip_fraction: float


RECENT = 4  # iterations: one rollout's KL is noisy
ROUNDING = {"float32": Rounding(1e-3, 1e-5, 0.0), "bfloat16": Rounding(2e-2, 5e-3, 0.05)}


def check_experience(experience: Experience) -> None:
    """Raise ModelError if a log-probability, KL, value, advantage, score or part of it is NaN or infinite."""
    named = {**experience._asdict(), **{f"reward/{name}": scores for name, scores in experience.parts.items()}}
    for name, values in named.items():
        if isinstance(values, Tensor) and not values.isfinite().all():
            place = (~values.isfinite()).nonzero()[0].tolist()
            raise ModelError(
                f"ppo: {name} is {values[tuple(place)].item()} in episode {place[0]}; lower ppo's learning rates, or "
                "fix the reward."
            )


def check_step(step: Mapping[str, float], config: PpoConfig) -> None:
    """Raise ModelError if a minibatch's metric is not finite or above the recipe's limits."""
    for name, value in step.items():
        if not math.isfinite(value):
            raise ModelError(f"ppo: {name} is {value}; lower ppo's learning rates.")
    for name, key, limit in (
        ("policy/mean_ratio", "max_ratio", config.max_ratio),
        ("policy/approx_kl", "max_approx_kl", config.max_approx_kl),
    ):
        if limit is not None and step[name] > limit:
            raise ModelError(
                f"ppo: {name} is {step[name]:.4g}, above ppo.{key} ({limit:g}): the updates moved too far from the "
                "policy that sampled; lower ppo's learning rates or inner_epochs, or raise the limit."
            )


def check_first_minibatch(step: Mapping[str, float], precision: str = "float32") -> None:
    """Raise ModelError unless ratio is 1, KL 0 and nothing clipped, as rounding allows, before any weight has changed.

    New and old log-probabilities are then of the same model. If they differ, sampling and training disagree on
    temperature, masks, positions or dropout, and every later number would be wrong."""
    ratio, kl, clipped = step["policy/mean_ratio"], step["policy/approx_kl"], step["policy/clip_fraction"]
    rounding = ROUNDING[precision]
    if abs(ratio - 1) > rounding.ratio or kl > rounding.approx_kl or clipped > rounding.clip_fraction:
        raise ModelError(
            f"ppo: before the first update ratio is {ratio:.6f} (not 1), approx-KL {kl:.2e} (not 0), clip fraction "
            f"{clipped:.4f} (not 0): in training the model gives other probabilities than in sampling; report this bug."
        )


def has_gone_far(kls: Sequence[float], limit: float | None) -> bool:
    """Whether the mean of the last iterations' KL to the SFT model, nats per episode, is above `stop_at_kl`.

    A reward model's faults are found far from the SFT model, and seeds get there at different speeds, so a distance
    ends training better than a number of iterations (Gao et al. 2022 compare a KL penalty with such early stopping)."""
    recent = kls[-RECENT:]
    mean = sum(recent) / RECENT
    far = limit is not None and len(recent) == RECENT and mean > limit
    if far:
        logger.info(
            "ppo: ends here: the last %d iterations' mean KL is %.2f, above stop_at_kl (%g)", RECENT, mean, limit
        )
    return far
