"""The settings of PPO."""

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
    """Stage 3: maximise the reward minus a KL penalty to the SFT model (InstructGPT 3.5 eq. 2, C.4)."""

    section = "ppo"
    prompts: list[Source]
    """Prompts to answer; repeated ones are used once."""
    preset: Literal["instructgpt", "tldr"] | None = None
    """Published run whose values apply to settings that the recipe leaves out (docs/ppo.md); null: none. It takes
    effect when a recipe is read, not on a config made in Python."""
    sft: str | None = None
    """Initial policy, also the KL reference: a name in the store, or a directory; null: this recipe's SFT model."""
    reward_model: str | None = None
    """Reward model: a name in the store, or a directory; null: this recipe's."""
    rewards: list[RewardPart] = field(default_factory=lambda: [RewardPart()])
    """Parts whose weighted sum is the reward (docs/rewards.md); by default the reward model only."""
    iterations: int = 100
    """Number of PPO iterations (one rollout and its updates each)."""
    rollout_batch: int = 512
    """Episodes (a prompt with its answer) per iteration."""
    minibatches: int = 8
    """Minibatches, each one optimiser step, per pass over an iteration's episodes."""
    inner_epochs: int = 1
    """Passes over an iteration's episodes (InstructGPT: 1 x 8 minibatches; summarize_from_feedback: 4 x 1)."""
    micro_batch: int = 0
    """Episodes per forward pass of the update; 0: a whole minibatch. Affects memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. Saves memory; same gradient."""
    max_prompt_length: int = 512
    """Longest prompt, in tokens; longer ones are dropped and counted."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How rollouts are sampled."""
    kl_coef: float = 0.02
    """Weight of the per-token KL penalty in the reward; 0: no penalty."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL penalty per token (docs/ppo.md); k1 is the log-ratio."""
    kl_target: float | None = None
    """Adapt kl_coef until the KL per episode is this, in nats (lm-human-preferences); null: kl_coef stays fixed."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive kl_coef changes by at most 20 %. Used only with kl_target."""
    stop_at_kl: float | None = None
    """End training, and publish the policy, once the mean KL per episode of the last 4 iterations is above this, in
    nats; null: train for all iterations."""
    score_without_eos: float = -1.0
    """Score that replaces the rewards (but not the penalties) of an answer cut off before EOS."""
    score_clip: float | None = None
    """Clip the weighted sum of rewards, penalties excluded, to within this distance of 0; null: no clipping."""
    whiten_rewards: bool = False
    """Scale each rollout's token rewards to variance 1; their mean stays."""
    gamma: float = 1.0
    """Discount per token; 1: no discounting."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (GAE)."""
    clip_range: float = 0.2
    """Clip range x of PPO's loss: the probability ratio (new/old) is clipped to [1 - x, 1 + x]."""
    value_clip_range: float | None = 0.2
    """Clip range of the value loss: values stay within this distance of the old ones; null: no clipping."""
    entropy_coef: float = 0.0
    """Weight of a bonus for the policy's entropy per token; 0: none (InstructGPT has none)."""
    target_approx_kl: float | None = None
    """Skip the rest of an iteration's updates once the policy is further than this from the one that sampled (k3, in
    nats per token); null: never."""
    value_warmup: int = 0
    """Train only the value model for this many iterations; the policy's learning-rate warm-up starts after them."""
    ema_decay: float | None = None
    """Decay per iteration of the weight average to publish (InstructGPT: 0.992); null: publish the last weights."""
    pretraining_data: list[Source] = field(default_factory=list)
    """Plain text for the pretraining loss that PPO-ptx adds; empty: none."""
    pretraining_coef: float = 0.0
    """Weight of the pretraining loss (InstructGPT: 27.8); 0: no pretraining loss."""
    pretraining_gradient_ratio: float | None = None
    """Choose the pretraining loss's weight automatically: its gradient's norm becomes this multiple of PPO's.
    Overrides pretraining_coef; null: use pretraining_coef."""
    pretraining_rows: int = 16
    """Rows of pretraining text per minibatch."""
    pretraining_length: int = 128
    """Tokens per row of pretraining text."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(schedule="constant", warmup_steps=10, eps=1e-5)
    )
    """Optimiser of the policy; its schedule counts iterations."""
    value_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=9e-6, schedule="constant", warmup_steps=10, eps=1e-5)
    )
    """Optimiser of the value model; its schedule counts iterations."""
    trainable_layers: int | None = None
    """Train only the upper N layers of policy and value model, the final norm and the value head (with `lora`: adapters
    in these layers); what is below reads each text once per iteration (docs/ppo.md). null: train all layers."""
    trunk_states: Literal["float32", "bfloat16"] = "float32"
    """Type in which the states of the frozen layers are kept; bfloat16: half the memory, rounded."""
    trunk_memory: float = 4.0
    """Keep an iteration's states of the frozen layers in a file if they need more than this, in GiB."""
    lora: LoraConfig | None = None
    """Train adapters of policy and value model, for example {rank: 16, alpha: 32}; null: train all weights."""
    shared_backbone: bool = False
    """With `lora`: use one copy of the SFT model's weights for all four models, if the reward model was trained with
    LoRA on that SFT model; otherwise two copies (docs/memory.md)."""
    offload_frozen: bool = True
    """Without `lora`: keep reference and reward model in memory only while they are in use (docs/memory.md). Same
    results."""
    monitor: JudgePath | None = None
    """Judge, as "module:function", whose mean scores of each rollout are logged but never trained on; null: none."""
    max_ratio: float | None = 10.0
    """Stop the run if a minibatch's mean probability ratio (new/old) exceeds this; null: never."""
    max_approx_kl: float | None = 5.0
    """Stop the run if a minibatch's approximate KL(old || new), in nats per token, exceeds this; null: never."""
    keep_rollouts: bool = True
    """Keep the rollout of every iteration for `triptych replay`; false: only the latest, to inspect after a stop."""
    snapshot_every: int = 0
    """Save the training state every N iterations, so that a replay can start from there; 0: never."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of the forward passes; weights, optimisers, scores and losses are always float32. auto: bfloat16 if a
    measurement at the start finds it clearly faster (docs/ppo.md)."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_bounds(self, iterations=COUNT, rollout_batch=COUNT, minibatches=COUNT, inner_epochs=COUNT)
        check_bounds(self, micro_batch=NOT_NEGATIVE, max_prompt_length=COUNT, kl_coef=NOT_NEGATIVE, kl_target=POSITIVE)
        check_bounds(self, stop_at_kl=POSITIVE, kl_horizon=COUNT, gamma=SHARE, gae_lambda=SHARE, clip_range=POSITIVE)
        check_bounds(self, value_clip_range=POSITIVE, max_ratio=(1, INFINITY), max_approx_kl=POSITIVE)
        check_bounds(self, snapshot_every=NOT_NEGATIVE, score_clip=POSITIVE, entropy_coef=NOT_NEGATIVE)
        check_bounds(self, target_approx_kl=POSITIVE, value_warmup=NOT_NEGATIVE, pretraining_gradient_ratio=POSITIVE)
        check_bounds(self, ema_decay=SHARE, pretraining_coef=NOT_NEGATIVE)
        check_bounds(self, trainable_layers=COUNT, trunk_memory=NOT_NEGATIVE)
        if self.trainable_layers is not None and self.shared_backbone:
            raise ConfigError("ppo has trainable_layers and shared_backbone; both share frozen layers: set only one")
        check_bounds(self, pretraining_rows=COUNT, pretraining_length=(8, INFINITY))
        if self.rollout_batch % self.minibatches:
            raise ConfigError(
                f"ppo.rollout_batch is {self.rollout_batch}; "
                f"it must be a multiple of ppo.minibatches ({self.minibatches})"
            )
        if self.value_warmup >= self.iterations:
            raise ConfigError(
                f"ppo.value_warmup is {self.value_warmup} of {self.iterations} iterations, so the policy would never "
                "train; lower it"
            )
        if self.shared_backbone and self.lora is None:
            raise ConfigError("ppo.shared_backbone is set, but only adapters can share a backbone; set ppo.lora")
        check_ppo_rewards(self.rewards, self.reward_model)
        if self.mixes_text and not self.pretraining_data:
            name, off = ("coef", 0) if self.pretraining_gradient_ratio is None else ("gradient_ratio", "null")
            raise ConfigError(
                f"ppo.pretraining_{name} is set, but ppo.pretraining_data is empty; add plain text there, or set "
                f"ppo.pretraining_{name} to {off}"
            )

    @property
    def mixes_text(self) -> bool:
        """Whether pretraining text is mixed in (PPO-ptx)."""
        return self.pretraining_coef > 0 or self.pretraining_gradient_ratio is not None
