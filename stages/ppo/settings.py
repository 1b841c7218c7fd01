"""What a recipe says about PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_schema.sources import Source
from stages.errors import ConfigError
from stages.ppo.reward_settings import RewardPart, check_ppo_rewards
from stages.settings import (
    COUNT,
    INFINITY,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Device,
    JudgePath,
    LoraConfig,
    OptimizerConfig,
    SamplingConfig,
    check_bounds,
)


@dataclass(frozen=True)
class PpoConfig:
    """Stage 3, PPO against the reward model, with a KL penalty to the SFT model and pretraining text mixed in
    (InstructGPT 3.5 eq. 2, C.4)."""

    section = "ppo"
    prompts: list[Source]
    preset: Literal["instructgpt", "tldr"] | None = None
    """Fill in the settings of a published run where the recipe says nothing (docs/ppo.md). Acts where a recipe is read,
    not on a config made in Python."""
    sft: str | None = None
    """Policy to start from and reference of the KL; null: this pipeline's SFT model."""
    reward_model: str | None = None
    """null: this pipeline's reward model."""
    rewards: list[RewardPart] = field(default_factory=lambda: [RewardPart()])
    """Parts of which the reward is the weighted sum (docs/rewards.md)."""
    iterations: int = 100
    """Rollout and update so often."""
    rollout_batch: int = 512
    """Episodes per iteration."""
    minibatches: int = 8
    """Optimiser steps per pass over an iteration's episodes."""
    inner_epochs: int = 1
    """Passes over an iteration's episodes (InstructGPT: 1 x 8 minibatches; summarize_from_feedback: 4 x 1)."""
    micro_batch: int = 0
    """Episodes per forward pass; 0: a whole minibatch. Changes memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Of policy and value model: compute each layer's states anew in the backward pass instead of keeping them. Changes
    memory, not the gradient."""
    max_prompt_length: int = 512
    """Prompts with more tokens are dropped and counted."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    kl_coef: float = 0.02
    """Weight of the per-token KL penalty in the reward."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """What that penalty charges for a token (docs/ppo.md); k1 is the log-ratio."""
    kl_target: float | None = None
    """Adapt kl_coef towards this KL per episode, in nats (lm-human-preferences); null: fixed."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive coefficient moves."""
    score_without_eos: float = -1.0
    """The score of an answer that never ended."""
    score_clip: float | None = None
    """Hold the rewards' normalised sum within this distance of 0, before penalties; null: no limit."""
    whiten_rewards: bool = False
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    entropy_coef: float = 0.0
    """Weight of a bonus for the policy's entropy per token (InstructGPT has none)."""
    target_approx_kl: float | None = None
    """Leave out the rest of an iteration's minibatches at the first that is further than this from the policy that
    sampled (k3, nats per token); null: never."""
    value_warmup: int = 0
    """For so many iterations the value model learns alone, the policy stays; then its own warm-up begins."""
    ema_decay: float | None = None
    """Publish a moving average of the policy's weights (InstructGPT: 0.992); null: the last weights."""
    pretraining_data: list[Source] = field(default_factory=list)
    """Plain text for PPO-ptx; empty: none."""
    pretraining_coef: float = 0.0
    """Weight of the pretraining loss (InstructGPT: 27.8)."""
    pretraining_gradient_ratio: float | None = None
    """In place of that weight, which then is not read: so large that the text's gradient has this many times the norm
    of PPO's; null: the fixed weight."""
    pretraining_rows: int = 16
    """Rows of pretraining text per minibatch."""
    pretraining_length: int = 128
    """Tokens of such a row."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(schedule="constant", warmup_steps=10, eps=1e-5)
    )
    """The policy's; steps count iterations."""
    value_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=9e-6, schedule="constant", warmup_steps=10, eps=1e-5)
    )
    lora: LoraConfig | None = None
    shared_backbone: bool = False
    """With `lora`: all four roles over one copy of the SFT model's weights, if the reward model was trained with LoRA
    over that model; else two copies (docs/memory.md)."""
    offload_frozen: bool = True
    """Without `lora`: reference and reward model are in memory only while they are read (docs/memory.md). The same
    numbers."""
    monitor: JudgePath | None = None
    """A judge whose scores of each rollout are logged beside the reward. It is watched, never trained on."""
    max_ratio: float | None = 10.0
    """Stop where the mean probability ratio of a minibatch, new over old, is higher; null: never."""
    max_approx_kl: float | None = 5.0
    """Stop where the approximate KL of a minibatch, old to new in nats per token, is higher; null: never."""
    keep_rollouts: bool = True
    """Keep every iteration's record for `triptych replay`; false: the latest alone, to look at after a stop."""
    snapshot_every: int = 0
    """Save the state of training after every so many iterations, so that a replay can begin there; 0: never."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """What the models compute in; weights, optimisers, scores and losses are float32 in any case. auto: bfloat16 where
    a measurement at the start finds it clearly faster (docs/ppo.md)."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(
            self, iterations=COUNT, rollout_batch=COUNT, minibatches=COUNT, inner_epochs=COUNT, micro_batch=NOT_NEGATIVE
        )
        check_bounds(
            self, max_prompt_length=COUNT, kl_coef=NOT_NEGATIVE, kl_target=POSITIVE, kl_horizon=COUNT, gamma=SHARE
        )
        check_bounds(self, gae_lambda=SHARE, clip_range=POSITIVE, value_clip_range=POSITIVE)
        check_bounds(self, max_ratio=(1, INFINITY), max_approx_kl=POSITIVE, snapshot_every=NOT_NEGATIVE)
        check_bounds(
            self,
            score_clip=POSITIVE,
            entropy_coef=NOT_NEGATIVE,
            target_approx_kl=POSITIVE,
            value_warmup=NOT_NEGATIVE,
            pretraining_gradient_ratio=POSITIVE,
            ema_decay=SHARE,
            pretraining_coef=NOT_NEGATIVE,
            pretraining_rows=COUNT,
            pretraining_length=(8, INFINITY),
        )
        if self.rollout_batch % self.minibatches:
            raise ConfigError(
                f"ppo.rollout_batch is {self.rollout_batch}; "
                f"it must be a multiple of ppo.minibatches ({self.minibatches})"
            )
        if self.value_warmup >= self.iterations:
            raise ConfigError(
                f"ppo.value_warmup is {self.value_warmup} of {self.iterations} iterations, so the policy would never "
                "learn; lower it"
            )
        if self.shared_backbone and self.lora is None:
            raise ConfigError("ppo.shared_backbone is set, and what shares a backbone are adapters; set ppo.lora")
        check_ppo_rewards(self.rewards, self.reward_model)
        if self.mixes_text and not self.pretraining_data:
            name, off = ("coef", 0) if self.pretraining_gradient_ratio is None else ("gradient_ratio", "null")
            raise ConfigError(
                f"ppo.pretraining_{name} is set, so ppo.pretraining_data must name plain text; name some, or set "
                f"ppo.pretraining_{name} to {off}"
            )

    @property
    def mixes_text(self) -> bool:
        """Whether this is PPO-ptx."""
        return self.pretraining_coef > 0 or self.pretraining_gradient_ratio is not None
