"""The settings of the choice among SFT's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.errors import ConfigError
from stages.settings import COUNT, INFINITY, Device, SamplingConfig, check_bounds
from stages.sft.settings import SftConfig


@dataclass(frozen=True)
class SelectConfig:
    """The choice of the SFT checkpoint by the reward model's score of its answers (InstructGPT C.1)."""

    section = "select"
    prompts: list[Source] = field(default_factory=list)
    """Answered by every checkpoint; empty: the prompts of the demonstrations that SFT kept back."""
    n_prompts: int = 500
    """Answer the first so many."""
    max_prompt_length: int = 512
    """Prompts with more tokens are dropped and counted."""
    reward_model: str | None = None
    """null: this pipeline's reward model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(self, n_prompts=(2, INFINITY), max_prompt_length=COUNT)


def check_selection(sft: SftConfig, select: SelectConfig | None, has_reward_model: bool) -> None:
    """Raise ConfigError where `sft.select: reward_model` would have no reward model or no prompts."""
    if sft.select != "reward_model":
        return
    if not has_reward_model and (select is None or select.reward_model is None):
        raise ConfigError(
            "sft.select is 'reward_model', but there is none; add a section reward_model, or name one as "
            "select.reward_model"
        )
    if sft.held_out == 0 and not (select and select.prompts):
        raise ConfigError(
            "sft.select is 'reward_model', but sft.held_out is 0, so there are no prompts to choose by; keep some "
            "demonstrations back, or name select.prompts"
        )
