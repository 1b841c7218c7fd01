"""The settings of reward-model training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_schema.sources import Source
from stages.errors import ConfigError
from stages.settings import COUNT, INFINITY, NOT_NEGATIVE, POSITIVE, Device, LoraConfig, OptimizerConfig, check_bounds


@dataclass(frozen=True)
class LabelConfig:
    """What a comparison's label says beyond an order."""

    section = "reward_model.labels"
    margins: bool = False
    """Let the score of the better answer lead by the comparison's `margin`, where it states one."""
    noise: float = 0.0
    """The chance that a label is wrong: the loss aims at this probability for the worse answer, not at 0."""
    merge_labelers: bool = False
    """Make one comparison of those with the same prompt and answers: each pair's label is the share of votes."""

    def __post_init__(self) -> None:
        check_bounds(self, noise=(0, 0.49))
        if self.margins and (self.noise or self.merge_labelers):
            soft = "noise" if self.noise else "merge_labelers"
            raise ConfigError(f"reward_model.labels has margins and {soft}; a margin needs a sure winner, so set one")


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
