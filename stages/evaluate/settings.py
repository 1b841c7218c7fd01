"""The settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.ppo.reward_settings import RewardPart, check_rewards
from stages.settings import COUNT, INFINITY, Device, JudgePath, SamplingConfig, check_bounds


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare SFT and PPO on prompts no stage was trained on: scores, length, KL, and win rate with its interval."""

    section = "evaluate"
    prompts: list[Source]
    """Prompts to answer; those that any stage was trained on are left out and counted."""
    sft: str | None = None
    """SFT model to compare with: a name in the store, or a directory; null: ppo.sft, or this recipe's SFT model."""
    reward_model: str | None = None
    """Reward model that scores the answers: a name in the store, or a directory; null: ppo.reward_model, or this
    recipe's."""
    n_prompts: int = 500
    """Number of prompts to answer, taken from the start of the data."""
    judge: JudgePath | None = None
    """Judge that decides wins, as "module:function"; null: the second reward model decides if there is one
    (reward_model.second_half), else the reward, and the report says so."""
    rewards: list[RewardPart] = field(default_factory=list)
    """Rewards that score the answers; empty: those of ppo.rewards."""
    base_model: str | None = None
    """Model whose loss on the answers is reported, for their fluency: a directory or hub name, with the SFT model's
    tokens; null: the one that SFT started from if it is known, or else the SFT model."""
    text: list[Source] = field(default_factory=list)
    """Plain text on which the models' loss is measured, to see what was forgotten; it should be in no training data."""
    text_rows: int = 64
    """Maximum number of rows of this text."""
    text_length: int = 128
    """Tokens per row of this text; documents are joined and cut."""
    max_prompt_length: int = 512
    """Longest prompt, in tokens; longer ones are dropped and counted."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How both models' answers are sampled."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_bounds(self, n_prompts=(2, INFINITY), max_prompt_length=COUNT, text_rows=COUNT, text_length=(2, INFINITY))
        check_rewards("evaluate", self.rewards)
