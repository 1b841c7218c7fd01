"""The settings of rewards: the parts whose weighted sum PPO maximises."""

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
PENALTIES = ("length_penalty", "repetition_penalty", "opening_penalty")  # on an answer's form


@dataclass(frozen=True)
class RewardPart:
    """Part of a reward: a reward model, a function or a penalty. If none is set, it is the recipe's reward model."""

    section = "rewards"
    model: str | None = None
    """Reward model: a name in the store, or a directory; null: ppo.reward_model, or this recipe's."""
    function: str | None = None
    """Reward function, as "module:function"; called with (prompts, answers, seed), it returns one number per answer."""
    length_penalty: int | None = None
    """Length penalty: -1 for each token of an answer beyond this many; `weight` is the cost per token."""
    repetition_penalty: int | None = None
    """Repetition penalty: the share of an answer's n-grams that are repeated (0 to 1), negated; n tokens each."""
    opening_penalty: int | None = None
    """Opening penalty: the share of a rollout's other answers that begin with the same n tokens (0 to 1), negated."""
    weight: float = 1.0
    """Factor of the part's score in the weighted sum; 0: the part is only logged."""
    name: str | None = None
    """Name of the part in metrics; null: derived from its model, function or penalty."""
    text_crosses_over: bool = False
    """Let the reward model encode prompt and answer with its own tokenizer and template."""
    ensemble: Combination = "mean"
    """How an ensemble's scores are combined; penalised: mean - disagreement_coef * standard deviation."""
    disagreement_coef: float = 1.0
    """Weight of the ensemble's standard deviation; used only with `ensemble: penalised`."""

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("model", "function", *PENALTIES) if self.names(kind)]
        if len(kinds) > 1:
            raise ConfigError(f"one of the rewards sets {' and '.join(kinds)}; make them separate entries of the list")
        if self.text_crosses_over and not self.is_model:
            raise ConfigError(f"text_crosses_over is set for the reward '{self.label}'; it is only for reward models")
        if not math.isfinite(self.weight):
            raise ConfigError(f"the weight of the reward '{self.label}' is {self.weight}; it must be a finite number")
        if not re.fullmatch(r"\w+", self.label):
            raise ConfigError(f"a reward is named {self.label!r}; use only letters, digits and _ in its name")
        check_bounds(self, length_penalty=NOT_NEGATIVE, repetition_penalty=COUNT, opening_penalty=COUNT)
        check_bounds(self, disagreement_coef=NOT_NEGATIVE)

    def names(self, kind: str) -> bool:
        return getattr(self, kind) is not None

    @property
    def is_penalty(self) -> bool:
        return any(map(self.names, PENALTIES))

    @property
    def is_model(self) -> bool:
        return self.function is None and not self.is_penalty

    @property
    def is_pipelines(self) -> bool:
        """Whether the part is the recipe's own reward model, or the one that ppo.reward_model names."""
        return self.is_model and self.model is None

    @property
    def label(self) -> str:
        if self.name is not None:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        if self.is_penalty:
            return next(kind for kind in PENALTIES if self.names(kind))
        return "reward_model" if self.model is None else re.sub(r"\W+", "_", Path(self.model).name)


def check_rewards(section: str, rewards: Sequence[RewardPart]) -> None:
    """Raise ConfigError if two parts have the same name."""
    labels = [part.label for part in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{section}.rewards has {labels.count(label)} named '{label}'; give each its own `name`")


def check_ppo_rewards(rewards: Sequence[RewardPart], reward_model: str | None) -> None:
    """Raise ConfigError if PPO has no reward, or a reward model that no part uses."""
    check_rewards("ppo", rewards)
    if not rewards:
        raise ConfigError("ppo.rewards is empty; leave it out to use only the reward model, or add an entry")
    if reward_model is not None and not reads_pipelines(rewards):
        raise ConfigError(
            f"ppo.reward_model is '{reward_model}', but no entry of ppo.rewards uses it; add {{model: null}}"
        )


def reads_pipelines(rewards: Sequence[RewardPart]) -> bool:
    """Whether one of the parts is the recipe's own reward model."""
    return any(part.is_pipelines for part in rewards)


def reward_role(place: int) -> str:
    """The parent role of the model that the entry at this index of the list names."""
    return f"rewards.{place}"
