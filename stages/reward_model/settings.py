"""The settings of reward-model training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_schema.sources import Source
from stages.errors import ConfigError
from stages.settings import (
    COUNT,
    INFINITY,
    NOT_NEGATIVE,
    POSITIVE,
    Device,
    LoraConfig,
    OptimizerConfig,
    TrainingPrecision,
    check_bounds,
)


@dataclass(frozen=True)
class LabelConfig:
    """Soft labels and margins of comparisons."""

    section = "reward_model.labels"
    margins: bool = False
    """Subtract a comparison's `margin`, if it has one, from the score difference in the loss."""
    noise: float = 0.0
    """Probability that a label is wrong; the loss's target for the worse answer (label smoothing). 0: none."""
    merge_labelers: bool = False
    """Merge comparisons of the same prompt and answers; a pair's label is then its share of the votes."""

    def __post_init__(self) -> None:
        check_bounds(self, noise=(0, 0.49))
        if self.margins and (self.noise or self.merge_labelers):
            soft = "noise" if self.noise else "merge_labelers"
            raise ConfigError(f"reward_model.labels has margins and {soft}; margins need a sure winner: set only one")


@dataclass(frozen=True)
class RewardModelConfig:
    """Stage 2: train the SFT model with a scalar head on ranked answers (InstructGPT 3.5 eq. 1, C.2)."""

    section = "reward_model"
    data: list[Source] = field(default_factory=list)
    """Comparisons to train on; empty: those that the `comparisons` stage collected."""
    demonstrations: list[Source] = field(default_factory=list)
    """Demonstrations whose mean reward is set to 0; empty: the SFT stage's data."""
    normalise_on: Literal["demonstrations", "policy_samples"] = "demonstrations"
    """How rewards are scaled. demonstrations: mean 0 on them, by a bias (InstructGPT); policy_samples: mean 0 and
    standard deviation 1 on the SFT model's own answers (lm-human-preferences), taken from the comparisons."""
    normalise_rows: int = 1000
    """Maximum number of demonstrations or answers scored for normalise_on."""
    sft: str | None = None
    """Model to start from: a name in the store, or a directory; null: this recipe's SFT model."""
    held_out: float = 0.1
    """Share of prompts held out to measure pair accuracy; used only with `data`. 0: none."""
    epochs: float = 1.0
    """Passes over the training comparisons."""
    batch_prompts: int = 64
    """Prompts per optimiser step; all answers and pairs of a prompt are in the same step."""
    micro_batch_tokens: int = 0
    """Tokens per forward pass, rounded up to whole prompts; 0: a whole batch. Affects memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. Saves memory; same gradient."""
    max_length: int = 1024
    """Longest prompt with its answer, in tokens; a comparison with a longer one (or one longer than the model's
    context) is dropped and counted."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """How labels are read: margins, noise, several labelers."""
    mismatched_answers: bool = False
    """Give each training prompt the best answer of another one as a further answer that is worse than its own best, so
    that an answer which would fit any prompt earns less (docs/reward_model.md)."""
    ensemble: int = 1
    """Number of reward models, as adapters over one backbone (docs/rewards.md); more than 1 needs `lora`."""
    second_half: bool = False
    """Train on half of the training prompts only, and a second, independent model on the other half, for verdicts on
    what PPO made of the first (docs/evaluation.md)."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=9e-6))
    """Optimiser; its schedule counts optimiser steps."""
    lora: LoraConfig | None = None
    """Train adapters, for example {rank: 16, alpha: 32}; null: train all weights."""
    trainable_layers: int | None = None
    """Train only the upper N layers, the final norm and the head (with `lora`: adapters in these layers); PPO with the
    same setting or a larger one then reads the other layers once for all models. null: train all layers."""
    frozen_layers: int | None = None
    """Freeze this many layers and fit a linear readout of their mean state over tokens, for a few hundred comparisons
    (docs/reward_model.md). epochs and optimizer are then unused. null: train the whole model."""
    precision: TrainingPrecision | None = None
    """Type of the forward passes in training; weights, optimiser, scores and losses are always float32. auto: bfloat16
    if clearly faster on this machine (docs/ppo.md). null: bfloat16 on a GPU that has it, float32 on a CPU."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_bounds(self, normalise_rows=(2, INFINITY), held_out=(0, 0.9), epochs=POSITIVE, batch_prompts=COUNT)
        check_bounds(self, micro_batch_tokens=NOT_NEGATIVE, max_length=(8, INFINITY), ensemble=COUNT)
        if self.ensemble > 1 and self.lora is None:
            raise ConfigError("reward_model.ensemble is above 1, but its members are adapters; set reward_model.lora")
        if self.ensemble > 1 and self.second_half:
            raise ConfigError("reward_model has ensemble and second_half; only one model can have a second: drop one")
        check_bounds(self, frozen_layers=COUNT, trainable_layers=COUNT)
        if self.frozen_layers is not None and self.trainable_layers is not None:
            raise ConfigError("reward_model has frozen_layers and trainable_layers; both freeze layers: set only one")
        if self.frozen_layers is not None and self.precision == "bfloat16":
            raise ConfigError("reward_model.frozen_layers is always read in float32; leave precision out, or set auto")
        if self.frozen_layers is not None and self.lora is not None:
            raise ConfigError("reward_model has frozen_layers and lora; frozen layers take no adapters: set only one")
