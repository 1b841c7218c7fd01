"""`Recipe`: the settings of all stages, each stage's own config from its `settings.py`.

No torch is needed to read a recipe, so `--help`, `--dry-run` and a finished pipeline answer immediately. Configs are
frozen and validate their values when constructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_schema.held_out import HeldOutTasks
from data_schema.mixtures import check_weights
from stages.comparisons.settings import ComparisonsConfig
from stages.errors import ConfigError
from stages.evaluate.settings import EvaluateConfig
from stages.ppo.reward_settings import reads_pipelines
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig
from stages.select.settings import SelectConfig, check_selection
from stages.settings import TrackingConfig, check_bounds, check_name, source_lists
from stages.sft.settings import SftConfig


@dataclass(frozen=True)
class Recipe:
    """The settings of a pipeline: SFT, reward model, PPO and evaluation. Stages may be left out, the first one too if
    the others name the models that they start from."""

    section = "recipe"
    name: str
    """Name of the pipeline and of its folder of results."""
    sft: SftConfig | None = None
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
        check_bounds(self, seed=(0, 2**32 - 1))
        check_name("name", self.name)
        stages = {name: getattr(self, name) for name in ("comparisons", "reward_model", "select", "ppo", "evaluate")}
        for section, config in stages.items():
            for name, sources in source_lists(config).items():
                check_weights(f"{section}.{name}", sources, None)
        if self.sft is None:
            check_without_sft(stages)
        elif self.sft.select == "reward_model":
            check_selection(self.sft, self.select, self.reward_model is not None)
        if self.reward_model and self.comparisons is None and not self.reward_model.data:
            raise ConfigError("reward_model.data is empty and there is no section comparisons; add one of them")
        if self.ppo and reads_pipelines(self.ppo.rewards) and not (self.reward_model or self.ppo.reward_model):
            raise ConfigError("ppo needs a reward model; add the section reward_model, or set ppo.reward_model")
        if self.evaluate:
            check_evaluation(self.evaluate, self.ppo, self.reward_model is not None)


def check_without_sft(stages: Mapping[str, Any]) -> None:
    """Raise ConfigError if a stage would read an SFT model that the recipe neither trains nor names."""
    used = {name: config for name, config in stages.items() if config is not None and name != "select"}
    if not used:
        raise ConfigError("sft is required; add it, with at least data and base_model")
    ppo = used.get("ppo")
    for name, config in used.items():
        if not (config.sft or (name == "evaluate" and ppo and ppo.sft)):
            raise ConfigError(f"the recipe has no section sft; add it, or name the model to start from in {name}.sft")
    reward_model = used.get("reward_model")
    if reward_model and reward_model.normalise_on == "demonstrations" and not reward_model.demonstrations:
        raise ConfigError(
            "reward_model.demonstrations is empty and the recipe has no section sft to take them from; name some, or "
            "set reward_model.normalise_on to policy_samples"
        )


def check_evaluation(evaluate: EvaluateConfig, ppo: PpoConfig | None, has_reward_model: bool) -> None:
    """Raise ConfigError if there is no policy to evaluate, or no reward model to score with."""
    if ppo is None:
        raise ConfigError("evaluate compares SFT with PPO; add the section ppo, or remove evaluate")
    named = evaluate.reward_model or ppo.reward_model
    if reads_pipelines(evaluate.rewards or ppo.rewards) and not (named or has_reward_model):
        raise ConfigError("evaluate needs a reward model; add the section reward_model, or set evaluate.reward_model")
