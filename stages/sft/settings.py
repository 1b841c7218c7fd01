"""What a recipe says about supervised tuning, and about the choice among its checkpoints."""

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
    check_bounds,
)


@dataclass(frozen=True)
class SftConfig:
    """Stage 1, supervised instruction tuning: next-token loss on the response tokens of demonstrations (InstructGPT
    3.5, C.1)."""

    section = "sft"
    data: list[Source]
    """Demonstrations."""
    base_model: str
    """Directory or hub name of a pretrained causal language model."""
    template: str = "plain"
    """How messages become text: a name of data_schema.templates, a file such as my.jinja, or "tokenizer" for the
    tokenizer's own."""
    pad_token: str | None = None
    """The tokenizer's padding token, if it has none or if that is its EOS; added to the vocabulary when it is new."""
    held_out: float = 0.02
    """Share of the demonstrations kept back to measure the loss on."""
    epochs: float = 1.0
    batch_size: int = 32
    """Rows per optimiser step: demonstrations, and pretraining text if there is some."""
    micro_batch_size: int = 0
    """Rows per forward pass; 0: all of a batch at once. Changes memory, not the gradient."""
    gradient_checkpointing: bool = False
    """Compute each layer's states anew in the backward pass instead of keeping them. Changes memory, not the
    gradient."""
    max_length: int = 1024
    """Tokens of a demonstration; longer ones are dropped and counted, never cut in silence."""
    packing: bool = True
    """Lay demonstrations side by side in rows, each seeing itself alone: the same gradient with less padding to
    compute. A model that cannot read such rows gets one demonstration a row."""
    residual_dropout: float = 0.0
    """Dropout on what attention and MLP add to the residual stream (InstructGPT: 0.2)."""
    mixture: Mixture | None = None
    """How much of each source makes an epoch (docs/mixtures.md); null: all rows of all."""
    few_shot: FewShot | None = None
    """Exemplars before the question; null: none but those in the data."""
    chain_of_thought: ChainOfThought | None = None
    """Answers with the reasoning in meta's `rationale`; null: as the data have them."""
    pretraining_data: list[Source] = field(default_factory=list)
    """Plain text mixed into every batch, all of it learned (InstructGPT C.3); empty: none."""
    pretraining_share: float = 0.1
    """Share of a batch's rows that are such text (InstructGPT: 10 %)."""
    pretraining_length: int = 128
    """Tokens of such a row."""
    select: Literal["last", "held_out_loss", "reward_model"] = "last"
    """Which weights go on: the last; those with the lowest loss on the demonstrations kept back; or those whose answers
    the reward model scores highest, chosen after it is trained (InstructGPT C.1)."""
    checkpoints: int = 4
    """To choose among, evenly spaced over the steps, the last included; not read with `select: last`."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    quantization: Literal["nf4"] | None = None
    """Train the adapters on a base of 4 bits a weight (QLoRA); needs `lora` and bitsandbytes."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_weights("sft.data", self.data, self.mixture)
        check_bounds(self, held_out=(0, 0.9), epochs=POSITIVE, batch_size=COUNT, micro_batch_size=NOT_NEGATIVE)
        check_bounds(self, max_length=(8, INFINITY), residual_dropout=(0, 0.9), checkpoints=COUNT)
        check_bounds(self, pretraining_share=(0.001, 0.9), pretraining_length=(8, INFINITY))
        check_weights("sft.pretraining_data", self.pretraining_data, None)
        if self.quantization and self.lora is None:
            raise ConfigError(
                f"sft.quantization is '{self.quantization}', and weights of 4 bits cannot be trained, only adapters on "
                "them; set sft.lora, or leave quantization out"
            )
        if self.select == "held_out_loss" and self.held_out == 0:
            raise ConfigError("sft.select is 'held_out_loss', but sft.held_out is 0; keep some demonstrations back")
