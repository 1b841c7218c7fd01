"""`Recipe`: the settings of all stages, each stage's own config from its `settings.py`.

No torch is needed to read a recipe, so `--help`, `--dry-run` and a finished pipeline answer immediately. Configs are
frozen and validate their values when constructed.
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
from stages.settings import NOT_NEGATIVE, TrackingConfig, check_bounds, source_lists
from stages.sft.settings import SftConfig


@dataclass(frozen=True)
class Recipe:
    """The settings of a pipeline: SFT, reward model, PPO and evaluation. Later stages may be left out."""

    section = "recipe"
    name: str
    """Name of the pipeline and of its folder of results."""
    sft: SftConfig
    reward_model: RewardModelConfig | None = None
    ppo: PpoConfig | None = None
    evaluate: EvaluateConfig | None = None
    comparisons: ComparisonsConfig | None = None
    """If present, comparisons are sampled from the SFT model and labelled by code."""
    select: SelectConfig | None = None
    """Settings for `sft.select: reward_model`; ignored without it."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    held_out_tasks: HeldOutTasks | None = None
    """Tasks and sources that no training stage may read."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        check_bounds(self, seed=NOT_NEGATIVE)
        for section in ("comparisons", "reward_model", "select", "ppo", "evaluate"):
            for name, sources in source_lists(getattr(self, section)).items():
                check_weights(f"{section}.{name}", sources, None)
        if self.reward_model and self.comparisons is None and not self.reward_model.data:
            raise ConfigError("reward_model.data is empty and there is no section comparisons; add one of them")
        check_selection(self.sft, self.select, self.reward_model is not None)
        if self.ppo and reads_pipelines(self.ppo.rewards) and not (self.reward_model or self.ppo.reward_model):
            raise ConfigError("ppo needs a reward model; add the section reward_model, or set ppo.reward_model")
        scored_by = (self.evaluate and self.evaluate.rewards) or (self.ppo and self.ppo.rewards) or []
        if self.evaluate and not (self.ppo and (self.reward_model or not reads_pipelines(scored_by))):
            raise ConfigError("evaluate compares SFT with PPO; add sections reward_model and ppo, or remove evaluate")
        if not self.name or "/" in self.name:
            raise ConfigError(f"name is {self.name!r}; it must be a word without '/', since a folder is named after it")
