"""Stage 1, supervised instruction tuning (InstructGPT 3.5, C.1), on TRL's SFTTrainer.

Conversations are encoded here, not by the trainer, so that the ids are those PPO and the reward model will see, the
loss mask is ours to prove, and what is too long is counted. We differ from the paper: AdamW's weight decay and packing
are options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from data_schema import Demonstration, Records, load_all
from policy.encoding import encode, pad, set_template
from policy.errors import ModelError
from policy.language_model import add_lora, choose_device, load_language_model, save_checkpoint
from policy.logprobs import token_logprobs_from_hidden
from policy.rollout import output_head
from stages.configs import SftConfig
from stages.job import Job, StageResult, data_account, keep_back, write_seen_prompts
from stages.optimizer import make_optimizer
from stages.trainer import RecordCallback, SortedWithinBatches, count_steps, split_batch, trainer_arguments

logger = logging.getLogger("triptych.sft")
IGNORED = -100  # the label of a token that is read but not learned


def run(config: SftConfig, job: Job) -> StageResult:
    """Tune `config.base_model` on demonstrations; the output is a causal language model with its template."""
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    model, tokenizer = load_language_model(config.base_model, device, config.pad_token)
    template = set_template(tokenizer, config.template)

    records = load_all(config.data, Demonstration, job.seed)
    train_records, held_out_records = keep_back(records, config.held_out, job.seed)
    train, train_dropped = encode_records(train_records, tokenizer, config.max_length)
    held_out, held_out_dropped = encode_records(held_out_records, tokenizer, config.max_length)
    if config.packing:
        train = pack_dataset(train, config.max_length, "bfd")

    micro_batch, accumulate = split_batch("sft", config.batch_size, config.micro_batch_size)
    steps = count_steps("sft", len(train), config.batch_size, config.epochs)
    add_residual_dropout(model, config.residual_dropout)
    if config.lora:
        model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "CAUSAL_LM")
    optimizer = make_optimizer(model.parameters(), config.optimizer, steps)
    arguments = SFTConfig(
        **trainer_arguments(
            job.directory, device, job.seed, micro_batch, accumulate, steps, config.optimizer.max_grad_norm
        ),
        max_length=None,  # what is longer has been dropped, and counted, above
        padding_free=config.packing,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=None,  # type: ignore[arg-type]  # the deprecated name, which TRL turns on by default
        activation_checkpointing=False,
    )
    trainer = BatchSortingTrainer(
        model,
        args=arguments,
        train_dataset=train,
        processing_class=tokenizer,
        optimizers=optimizer,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RecordCallback(job.tracker, "sft"))
    trainer.train()

    tuned: PreTrainedModel = trainer.model.merge_and_unload() if config.lora else trainer.model
    metrics: dict[str, Any] = {"steps": steps, "template": template, **held_out_loss(tuned, held_out, config, device)}
    if "held_out_loss" in metrics:
        job.tracker.log({"sft/held_out_loss": metrics["held_out_loss"]}, step=steps)
    save_checkpoint(tuned, tokenizer, job.output)
    write_seen_prompts(job.output, train_records)
    return StageResult(metrics, {"data": data_account(records, too_long=train_dropped + held_out_dropped)})


class BatchSortingTrainer(SFTTrainer):
    """TRL's trainer with rows of like length in one forward pass; which rows make up an optimiser step stays random."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedWithinBatches:
        lengths = [len(row) for row in self.train_dataset["input_ids"]]
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return SortedWithinBatches(lengths, rows_per_step, self.args.seed)


def encode_records(
    records: Records[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Any, int]:
    """Demonstrations -> (datasets.Dataset of input_ids and labels, number dropped as longer than max_length).

    Labels are the ids of the assistant's tokens, EOS included, and IGNORED elsewhere. Held as Arrow, made a batch at
    a time.
    """
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    batches, dropped = [], 0
    for batch in _batches(records, 1000):
        encoded = encode(tokenizer, [record.messages for record in batch])
        kept = [row for row in encoded if len(row.ids) <= max_length]
        dropped += len(encoded) - len(kept)
        labels = [
            [i if learned else IGNORED for i, learned in zip(row.ids, row.is_response, strict=True)] for row in kept
        ]
        batches.append(pa.record_batch([[row.ids for row in kept], labels], schema=schema))
    if dropped:
        logger.warning(
            "sft: %d of %d demonstrations are longer than %d tokens and dropped", dropped, len(records), max_length
        )
    return Dataset(pa.Table.from_batches(batches, schema=schema)), dropped


def _batches(records: Records[Demonstration], size: int) -> Iterator[list[Demonstration]]:
    for start in range(0, len(records), size):
        yield [records[i] for i in range(start, min(start + size, len(records)))]


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: Any, config: SftConfig, device: torch.device) -> dict[str, float]:
    """Cross-entropy in nats per response token on the demonstrations kept back, each token weighing the same."""
    if len(rows) == 0:
        return {}
    model.eval()
    body = getattr(model, model.base_model_prefix)
    total, count = 0.0, 0
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        ids = pad(batch["input_ids"], 0, "right").ids.to(
            device
        )  # causal attention: padding on the right changes nothing
        labels = pad(batch["labels"], IGNORED, "right").ids.to(device)[:, 1:]
        learned = labels != IGNORED
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        found = token_logprobs_from_hidden(hidden[learned], output_head(model), labels[learned])
        total -= found.logprobs.sum().item()
        count += len(found.logprobs)
    return {"held_out_loss": total / count, "held_out_tokens": float(count)}


def add_residual_dropout(model: PreTrainedModel, share: float) -> None:
    """Dropout on what each attention and MLP block adds to the residual stream (InstructGPT C.1: 0.2), in training
    only.

    Most of today's architectures have no such setting, so it hangs on the blocks as forward hooks.
    """
    if share == 0:
        return

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        first = nn.functional.dropout(first, share, training=module.training)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    blocks = [
        m for name, m in model.named_modules() if name.rpartition(".")[2] in ("self_attn", "mlp", "attn", "attention")
    ]
    if not blocks:
        raise ModelError(
            f"sft.residual_dropout: {type(model).__name__} has no attention or MLP block known by name; set it to 0"
        )
    for block in blocks:
        block.register_forward_hook(drop)
