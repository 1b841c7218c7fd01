"""The settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.ppo.reward_settings import RewardPart, check_rewards
from stages.settings import COUNT, INFINITY, Device, JudgePath, SamplingConfig, check_bounds


@dataclass(frozen=True)
class EvaluateConfig:
    """SFT against PPO on prompts that no stage has seen: scores, length, KL, and the win rate with its interval."""

    section = "evaluate"
    prompts: list[Source]
    n_prompts: int = 500
    """Answer the first so many."""
    judge: JudgePath | None = None
    """Decides who wins; null: the reward model does, which is the very thing PPO pushed up, and the report says so."""
    rewards: list[RewardPart] = field(default_factory=list)
    """What scores the answers; empty: as ppo.rewards."""
    max_prompt_length: int = 512
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(self, n_prompts=(2, INFINITY), max_prompt_length=COUNT)
        check_rewards("evaluate", self.rewards)
