"""What a recipe says: one frozen dataclass per stage, and `Recipe` for the whole chain.

They stand apart from the stages so that reading a recipe needs no torch: `--help`, `--dry-run` and a pipeline that has
nothing left to do answer at once. A config that cannot be right cannot be built: each checks its ranges at birth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.held_out import HeldOutTasks
from data_schema.mixtures import check_weights
from stages.comparisons.settings import ComparisonsConfig
from stages.errors import ConfigError
from stages.evaluate.settings import EvaluateConfig
from stages.ppo.reward_settings import reads_pipelines
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig
from stages.select.settings import SelectConfig, check_selection
from stages.settings import (
    NOT_NEGATIVE,
    TrackingConfig,
    check_bounds,
    source_lists,
)
from stages.sft.settings import SftConfig


@dataclass(frozen=True)
class Recipe:
    """A base model's way through SFT, reward model, PPO and evaluation; it may end earlier."""

    section = "recipe"
    name: str
    sft: SftConfig
    reward_model: RewardModelConfig | None = None
    ppo: PpoConfig | None = None
    evaluate: EvaluateConfig | None = None
    comparisons: ComparisonsConfig | None = None
    """Present: comparisons are sampled from the SFT model and labelled by code."""
    select: SelectConfig | None = None
    """How `sft.select: reward_model` goes about it; without that it is not read."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    held_out_tasks: HeldOutTasks | None = None
    """Tasks and sources that no training stage may read."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, seed=NOT_NEGATIVE)
        for section in ("comparisons", "reward_model", "select", "ppo", "evaluate"):
            for name, sources in source_lists(getattr(self, section)).items():
                check_weights(f"{section}.{name}", sources, None)
        if self.reward_model and self.comparisons is None and not self.reward_model.data:
            raise ConfigError("reward_model.data is empty and there is no comparisons step; give one of them")
        check_selection(self.sft, self.select, self.reward_model is not None)
        if self.ppo and reads_pipelines(self.ppo.rewards) and not (self.reward_model or self.ppo.reward_model):
            raise ConfigError("ppo needs a reward model; add a section reward_model, or name one as ppo.reward_model")
        scored_by = (self.evaluate and self.evaluate.rewards) or (self.ppo and self.ppo.rewards) or []
        if self.evaluate and not (self.ppo and (self.reward_model or not reads_pipelines(scored_by))):
            raise ConfigError("evaluate compares SFT with PPO; add sections reward_model and ppo, or leave it out")
        if not self.name or "/" in self.name:
            raise ConfigError(f"name is {self.name!r}; it must be a word without '/', as it names a folder")
