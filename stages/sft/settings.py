"""The settings of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_schema.few_shot import ChainOfThought, FewShot
from data_schema.mixtures import Mixture, check_weights
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
class SftConfig:
    """Stage 1: supervised fine-tuning on the response tokens of demonstrations (InstructGPT 3.5, C.1)."""

    section = "sft"
    data: list[Source]
    """Demonstrations to train on."""
    base_model: str
    """Pretrained language model to start from: a directory or a Hugging Face hub name."""
    template: str = "plain"
    """Chat template: a name of data_schema.templates, a file such as my.jinja, or "tokenizer" for the tokenizer's
    own."""
    pad_token: str | None = None
    """Padding token, for tokenizers with none or with EOS as padding; added if new. null: the tokenizer's."""
    held_out: float = 0.02
    """Share of the demonstrations held out to measure the loss; 0: none."""
    epochs: float = 1.0
    """Passes over the demonstrations."""
    batch_size: int = 32
    """Demonstrations and rows of pretraining text per optimiser step."""
    micro_batch_size: int = 0
    """Rows per forward pass; 0: the whole batch. Affects memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. Saves memory; same gradient."""
    max_length: int = 1024
    """Longest demonstration, in tokens; longer ones are dropped and counted, never truncated."""
    packing: bool = True
    """Pack several demonstrations into a row, each attending only to itself: same gradient, less padding. Models
    that cannot do this get one demonstration per row."""
    residual_dropout: float = 0.0
    """Dropout on the outputs of attention and MLP blocks before the residual sum (InstructGPT: 0.2); 0: none."""
    mixture: Mixture | None = None
    """Share of each source in an epoch (docs/mixtures.md); null: all rows of every source."""
    few_shot: FewShot | None = None
    """Exemplars to put before each prompt (docs/mixtures.md); null: none are added."""
    chain_of_thought: ChainOfThought | None = None
    """Add the reasoning in meta's `rationale` to answers (docs/mixtures.md); null: leave answers as they are."""
    pretraining_data: list[Source] = field(default_factory=list)
    """Plain text mixed into every batch, with loss on all tokens (InstructGPT C.3); empty: none."""
    pretraining_share: float = 0.1
    """Share of a batch's rows that are pretraining text (InstructGPT: 10 %)."""
    pretraining_length: int = 128
    """Tokens per row of pretraining text."""
    select: Literal["last", "held_out_loss", "reward_model"] = "last"
    """Checkpoint to use: last; held_out_loss: the one with the lowest loss on held-out demonstrations; reward_model:
    the one whose answers the trained reward model scores highest (InstructGPT C.1)."""
    checkpoints: int = 4
    """Number of candidate checkpoints, evenly spaced and including the last. Ignored with `select: last`."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser; its schedule counts optimiser steps."""
    lora: LoraConfig | None = None
    """Train adapters, for example {rank: 16, alpha: 32}; null: train all weights."""
    quantization: Literal["nf4"] | None = None
    """Quantise the frozen base model to 4 bits per weight (QLoRA); needs `lora` and bitsandbytes. null: no."""
    precision: TrainingPrecision | None = None
    """Type of the forward passes in training; weights, optimiser and losses are always float32. auto: bfloat16 if
    clearly faster on this machine (docs/ppo.md). null: bfloat16 on a GPU that has it, float32 on a CPU."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_weights("sft.data", self.data, self.mixture)
        check_bounds(self, held_out=(0, 0.9), epochs=POSITIVE, batch_size=COUNT, micro_batch_size=NOT_NEGATIVE)
        check_bounds(self, max_length=(8, INFINITY), residual_dropout=(0, 0.9), checkpoints=COUNT)
        check_bounds(self, pretraining_share=(0.001, 0.9), pretraining_length=(8, INFINITY))
        check_weights("sft.pretraining_data", self.pretraining_data, None)
        if self.quantization and self.lora is None:
            raise ConfigError(
                f"sft.quantization is '{self.quantization}', but weights of 4 bits cannot be trained, only adapters on "
                "them; set sft.lora, or leave quantization out"
            )
        if self.select == "held_out_loss" and self.held_out == 0:
            raise ConfigError("sft.select is 'held_out_loss', but sft.held_out is 0; raise sft.held_out")
