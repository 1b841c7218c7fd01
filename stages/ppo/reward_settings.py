"""What a recipe says about rewards: the parts of which PPO's is the weighted sum."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.errors import ConfigError
from stages.settings import COUNT, NOT_NEGATIVE, check_bounds

Combination = Literal["mean", "minimum", "penalised"]


@dataclass(frozen=True)
class RewardPart:
    """One part of a reward: a reward model, a function, or a penalty. One that names none of them is the pipeline's
    reward model."""

    section = "rewards"
    model: str | None = None
    """A reward model: a name in the store, or a directory; null: ppo.reward_model, or this pipeline's."""
    function: str | None = None
    """"module:function" called with (prompts, answers, seed); it returns one number for each answer."""
    length_penalty: int | None = None
    """-1 for each token of an answer beyond this many; `weight` is the price of a token."""
    repetition_penalty: int | None = None
    """Minus the share of n-grams of so many tokens that the answer repeats (0 to 1)."""
    weight: float = 1.0
    """What the part's score is multiplied with in the sum; 0: watched only."""
    name: str | None = None
    """Under which it is recorded; null: made from what it is."""
    text_crosses_over: bool = False
    """Let a reward model read prompt and answer in a tokenizer and template of its own."""
    ensemble: Combination = "mean"
    """How the members of an ensemble make one score; penalised: mean - disagreement_coef * standard deviation."""
    disagreement_coef: float = 1.0

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("model", "function", "length_penalty", "repetition_penalty") if self.names(kind)]
        if len(kinds) > 1:
            raise ConfigError(f"one of the rewards names {' and '.join(kinds)}; make them two entries of the list")
        if self.text_crosses_over and not self.is_model:
            raise ConfigError(f"text_crosses_over is set for the reward '{self.label}'; only a reward model has a text")
        if not math.isfinite(self.weight):
            raise ConfigError(f"the weight of the reward '{self.label}' is {self.weight}; it must be a finite number")
        if not re.fullmatch(r"\w+", self.label):
            raise ConfigError(f"a reward is named {self.label!r}; a name holds letters, digits and _ only")
        check_bounds(self, length_penalty=NOT_NEGATIVE, repetition_penalty=COUNT, disagreement_coef=NOT_NEGATIVE)

    def names(self, kind: str) -> bool:
        return getattr(self, kind) is not None

    @property
    def is_penalty(self) -> bool:
        return self.length_penalty is not None or self.repetition_penalty is not None

    @property
    def is_model(self) -> bool:
        return self.function is None and not self.is_penalty

    @property
    def is_pipelines(self) -> bool:
        """Whether it is the reward model of this pipeline, or the one that ppo.reward_model names."""
        return self.is_model and self.model is None

    @property
    def label(self) -> str:
        if self.name is not None:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        if self.is_penalty:
            return "length_penalty" if self.length_penalty is not None else "repetition_penalty"
        return "reward_model" if self.model is None else re.sub(r"\W+", "_", Path(self.model).name)


def check_rewards(section: str, rewards: Sequence[RewardPart]) -> None:
    """Raise ConfigError where two parts would be recorded under one name."""
    labels = [part.label for part in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{section}.rewards has {labels.count(label)} named '{label}'; give each a `name`")


def check_ppo_rewards(rewards: Sequence[RewardPart], reward_model: str | None) -> None:
    """Raise ConfigError where PPO would have no reward, or a reward model that nothing reads."""
    check_rewards("ppo", rewards)
    if not rewards:
        raise ConfigError("ppo.rewards is empty, so there is nothing to learn; leave it out for the reward model alone")
    if reward_model is not None and not reads_pipelines(rewards):
        raise ConfigError(
            f"ppo.reward_model is '{reward_model}', which no entry of ppo.rewards reads; add {{model: null}}"
        )


def reads_pipelines(rewards: Sequence[RewardPart]) -> bool:
    """Whether the pipeline's own reward model is among them."""
    return any(part.is_pipelines for part in rewards)


def reward_role(place: int) -> str:
    """Under which a stage finds the model that the part at this place of the list names."""
    return f"rewards.{place}"
