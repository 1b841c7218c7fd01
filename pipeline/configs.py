"""What a recipe says: one frozen dataclass per stage, and `Recipe` for the whole chain.

They stand apart from the stages so that reading a recipe needs no torch: `--help`, `--dry-run` and a pipeline that has
nothing left to do answer at once. A config that cannot be right cannot be built: each checks its ranges at birth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_schema.held_out import HeldOutTasks
from data_schema.mixtures import check_weights
from data_schema.sources import Source
from stages.errors import ConfigError
from stages.ppo_settings import PpoConfig
from stages.reward_settings import LabelConfig, RewardPart, check_rewards, reads_pipelines
from stages.settings import (
    COUNT,
    INFINITY,
    NOT_NEGATIVE,
    POSITIVE,
    Device,
    JudgePath,
    LoraConfig,
    OptimizerConfig,
    SamplingConfig,
    check_bounds,
    source_lists,
)
from stages.sft_settings import SelectConfig, SftConfig, check_selection


@dataclass(frozen=True)
class ComparisonsConfig:
    """Step 2a, collecting comparisons: K answers of the SFT model to each prompt, ranked by a labeler given as code.

    With people's comparisons at hand a recipe leaves this out and gives `reward_model.data`.
    """

    section = "comparisons"
    prompts: list[Source]
    labeler: JudgePath
    """"module:function"; its "gold" ranks the answers."""
    answers_per_prompt: int = 4
    label_noise: float = 0.0
    """Chance that the preference between two neighbours in rank is turned round, as people's are."""
    tie_margin: float = 0.0
    """Gold scores closer than this are a tie."""
    held_out_prompts: int = 0
    """The last so many prompts become the held-out comparisons; their labels have no noise."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(self, answers_per_prompt=(2, 9), label_noise=(0, 0.5), tie_margin=NOT_NEGATIVE)
        check_bounds(self, held_out_prompts=NOT_NEGATIVE)


@dataclass(frozen=True)
class RewardModelConfig:
    """Stage 2, the reward model: a scalar head on the SFT model, trained on all pairs of each ranking (InstructGPT
    3.5 eq. 1, C.2)."""

    section = "reward_model"
    data: list[Source] = field(default_factory=list)
    """Comparisons; empty: those the `comparisons` step collected."""
    demonstrations: list[Source] = field(default_factory=list)
    """On these the mean reward is made 0; empty: the SFT stage's data."""
    normalise_on: Literal["demonstrations", "policy_samples"] = "demonstrations"
    """demonstrations: bias only (InstructGPT); policy_samples: mean 0 and deviation 1 on the SFT model's own answers
    (lm-human-preferences), taken from the comparisons."""
    normalise_rows: int = 1000
    """At most so many demonstrations or answers are scored for it."""
    sft: str | None = None
    """Start from this checkpoint or model directory; null: this pipeline's SFT model."""
    held_out: float = 0.1
    """Share of the prompts kept back to measure pair accuracy on, where the comparisons bring no held-out part."""
    epochs: float = 1.0
    batch_prompts: int = 64
    """Prompts per optimiser step; every answer and pair of a prompt stays in one step."""
    micro_batch_tokens: int = 0
    """Tokens per forward pass, rounded up to whole prompts; 0: a whole batch. Changes memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Compute each layer's states anew in the backward pass instead of keeping them. Changes memory, not the
    gradient."""
    max_length: int = 1024
    """Tokens of prompt and answer together; a comparison with a longer one, or one longer than the model has positions
    for, is dropped and counted."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    ensemble: int = 1
    """Members, all adapters over one backbone (docs/rewards.md); more than one need `lora`."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=9e-6))
    lora: LoraConfig | None = None
    frozen_layers: int | None = None
    """Keep so many layers as they are and fit a linear readout of the mean of their states, for a few hundred
    comparisons (docs/reward_model.md): no epochs, no optimizer. null: train the whole model."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(self, normalise_rows=(2, INFINITY), held_out=(0, 0.9), epochs=POSITIVE, batch_prompts=COUNT)
        check_bounds(self, micro_batch_tokens=NOT_NEGATIVE, max_length=(8, INFINITY), ensemble=COUNT)
        if self.ensemble > 1 and self.lora is None:
            raise ConfigError("reward_model.ensemble is above 1, and its members are adapters; set reward_model.lora")
        check_bounds(self, frozen_layers=COUNT)
        if self.frozen_layers is not None and self.lora is not None:
            raise ConfigError("reward_model has frozen_layers and lora; frozen layers take no adapters, so set one")


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


@dataclass(frozen=True)
class TrackingConfig:
    """Where curves are looked at. The record itself is always metrics.jsonl in a stage's run directory."""

    section = "tracking"
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an account, else offline."""
    project: str = "triptych"
    group: str | None = None
    """W&B's group of the stages' runs; null: the recipe's name."""


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
