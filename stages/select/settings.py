"""The settings of the stage that selects one of SFT's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.errors import ConfigError
from stages.settings import COUNT, INFINITY, Device, SamplingConfig, check_bounds
from stages.sft.settings import SftConfig


@dataclass(frozen=True)
class SelectConfig:
    """Select the SFT checkpoint whose answers the reward model scores highest (InstructGPT C.1)."""

    section = "select"
    prompts: list[Source] = field(default_factory=list)
    """Prompts that every checkpoint answers; empty: those of the demonstrations that SFT held out."""
    n_prompts: int = 500
    """Number of prompts to answer, taken from the start of the data."""
    max_prompt_length: int = 512
    """Longest prompt, in tokens; longer ones are dropped and counted."""
    reward_model: str | None = None
    """Reward model to score with: a name in the store, or a directory; null: this recipe's."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the answers are sampled."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_bounds(self, n_prompts=(2, INFINITY), max_prompt_length=COUNT)


def check_selection(sft: SftConfig, select: SelectConfig | None, has_reward_model: bool) -> None:
    """Raise ConfigError if `sft.select: reward_model` would have no reward model or no prompts."""
    if sft.select != "reward_model":
        return
    if not has_reward_model and (select is None or select.reward_model is None):
        raise ConfigError(
            "sft.select is 'reward_model', but the recipe has no reward model; add a section reward_model, or set "
            "select.reward_model"
        )
    if sft.held_out == 0 and not (select and select.prompts):
        raise ConfigError(
            "sft.select is 'reward_model', but sft.held_out is 0, so there are no prompts to answer; raise "
            "sft.held_out, or set select.prompts"
        )
