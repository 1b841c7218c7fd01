"""Stage 1, supervised instruction tuning (InstructGPT 3.5, C.1), on TRL's SFTTrainer.

Conversations are encoded here, not by the trainer, so that the ids are those PPO and the reward model will see, the
loss mask is ours to prove, and what is too long is counted. We differ from the paper: AdamW's weight decay is an
option, and demonstrations stand side by side in rows, each seeing itself alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from trl import SFTConfig, SFTTrainer

from data_schema import Demonstration, Records
from policy.encoding import encode, pad, set_template
from policy.errors import ModelError
from policy.language_model import (
    add_lora,
    choose_device,
    is_encoder_decoder,
    load_language_model,
    save_checkpoint,
)
from policy.logprobs import token_logprobs_from_hidden
from policy.packing import Places, pack_lengths, reads_packed
from policy.rollout import output_head
from stages import sft_seq2seq
from stages.configs import SftConfig
from stages.demonstrations import load_demonstrations
from stages.held_out_losses import row_loss, summarise_losses, write_losses
from stages.job import Job, StageResult, write_seen_prompts
from stages.optimizer import make_optimizer
from stages.trainer import RecordCallback, SortedWithinBatches, count_steps, split_batch, trainer_arguments

logger = logging.getLogger("triptych.sft")
IGNORED = -100  # the label of a token that is read but not learned


def run(config: SftConfig, job: Job) -> StageResult:
    """Tune `config.base_model` on demonstrations; the output is a causal language model with its template, or an
    encoder-decoder if the base is one."""
    if is_encoder_decoder(config.base_model):
        return sft_seq2seq.run(config, job)
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    model, tokenizer = load_language_model(config.base_model, device, config.pad_token)
    template = set_template(tokenizer, config.template)

    read = load_demonstrations(config, job)
    train, train_dropped = encode_records(read.train, tokenizer, config.max_length)
    held_out, held_out_dropped = encode_records(read.held_out, tokenizer, config.max_length)
    train = train.remove_columns("record")

    micro_batch, accumulate = split_batch("sft", config.batch_size, config.micro_batch_size)
    steps = count_steps("sft", len(train), config.batch_size, config.epochs)
    packed = config.packing and reads_packed(model)
    add_residual_dropout(model, config.residual_dropout)
    if config.lora:
        model = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "CAUSAL_LM")
    optimizer = make_optimizer(model.parameters(), config.optimizer, steps)
    arguments = SFTConfig(
        **trainer_arguments(
            job.directory, device, job.seed, micro_batch, accumulate, steps, config.optimizer.max_grad_norm
        ),
        max_length=None,  # what is longer has been dropped, and counted, above
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=None,  # type: ignore[arg-type]  # the deprecated name, which TRL turns on by default
        activation_checkpointing=False,
    )
    trainer = DemonstrationTrainer(
        model,
        args=arguments,
        train_dataset=train,
        data_collator=PackingCollator(tokenizer.pad_token_id, packed),
        processing_class=tokenizer,
        optimizers=optimizer,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RecordCallback(job.tracker, "sft"))
    trainer.train()

    tuned: PreTrainedModel = trainer.model.merge_and_unload() if config.lora else trainer.model
    losses = [
        row_loss(read.held_out[row["record"]], nats, tokens)
        for row, (nats, tokens) in zip(held_out, held_out_loss(tuned, held_out, device), strict=True)
    ]
    metrics: dict[str, Any] = {"steps": steps, "packed": packed, "template": template, **summarise_losses(losses)}
    if losses:
        told = ("held_out_loss", "held_out_bits_per_byte")
        job.tracker.log({f"sft/{name}": metrics[name] for name in told}, step=steps)
    save_checkpoint(tuned, tokenizer, job.output)
    write_losses(job.output, losses)
    write_seen_prompts(job.output, read.seen)
    return StageResult(metrics, {"data": read.account(train_dropped + held_out_dropped)})


class PackingCollator:
    """Demonstrations -> rows that hold several side by side (or one each), as wide as the longest.

    Positions start anew with each demonstration, by which the model tells them apart; a row's padding is read as
    demonstrations of one token. A demonstration's first token is never learned: nothing of its own is before it.
    """

    def __init__(self, pad_id: int, packed: bool) -> None:
        self.pad_id, self.packed = pad_id, packed

    def __call__(self, demonstrations: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in demonstrations]
        n = len(lengths)
        places = pack_lengths(lengths) if self.packed else Places(list(range(n)), [0] * n, n, max(lengths))
        ids = torch.full((places.n_rows, places.width), self.pad_id)
        labels, positions = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, at, begin, length in zip(demonstrations, places.row, places.column, lengths, strict=True):
            here = slice(begin, begin + length)
            ids[at, here] = torch.tensor(row["input_ids"])
            labels[at, here] = torch.tensor(row["labels"])
            labels[at, begin] = IGNORED
            positions[at, here] = torch.arange(length)
        if places.n_rows == n:  # plain causal attention will do: no token of a text sees the padding behind it
            positions = torch.arange(places.width).expand(n, -1)
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "n_tokens": torch.tensor(sum(lengths))}


class DemonstrationTrainer(SFTTrainer):
    """TRL's trainer on packed rows. Demonstrations of like length share a forward pass; which of them make up an
    optimiser step stays random."""

    tokens_read = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedWithinBatches:
        lengths = [len(row) for row in self.train_dataset["input_ids"]]
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return SortedWithinBatches(lengths, rows_per_step, self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        self.tokens_read += int(inputs.pop("n_tokens"))
        loss = super().compute_loss(model, inputs, *arguments, **named)
        self._metrics["train"]["num_tokens"] = [self.tokens_read]  # TRL takes packed rows to be one row
        return loss


def encode_records(
    records: Records[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Any, int]:
    """Demonstrations -> (datasets.Dataset of input_ids and labels, number dropped as longer than max_length).

    Labels are the ids of the assistant's tokens, EOS included, and IGNORED elsewhere; `record` is the demonstration's
    place in `records`. Held as Arrow, made a batch at a time.
    """
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "record": pa.int64()})
    batches, dropped, place = [], 0, 0
    for batch in _batches(records, 1000):
        encoded = encode(tokenizer, [record.messages for record in batch])
        places = [place + i for i, row in enumerate(encoded) if len(row.ids) <= max_length]
        kept = [encoded[i - place] for i in places]
        place += len(encoded)
        dropped += len(encoded) - len(kept)
        labels = [
            [i if learned else IGNORED for i, learned in zip(row.ids, row.is_response, strict=True)] for row in kept
        ]
        batches.append(pa.record_batch([[row.ids for row in kept], labels, places], schema=schema))
    if dropped:
        logger.warning(
            "sft: %d of %d demonstrations are longer than %d tokens and dropped", dropped, len(records), max_length
        )
    return Dataset(pa.Table.from_batches(batches, schema=schema)), dropped


def _batches(records: Records[Demonstration], size: int) -> Iterator[list[Demonstration]]:
    for start in range(0, len(records), size):
        yield [records[i] for i in range(start, min(start + size, len(records)))]


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: Any, device: torch.device) -> list[tuple[float, int]]:
    """For each of the demonstrations kept back: cross-entropy of its response tokens in nats, and their number."""
    model.eval()
    body = getattr(model, model.base_model_prefix)
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        ids = pad(batch["input_ids"], 0, "right").ids.to(
            device
        )  # causal attention: padding on the right changes nothing
        labels = pad(batch["labels"], IGNORED, "right").ids.to(device)[:, 1:]
        learned = labels != IGNORED
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logprobs = token_logprobs_from_hidden(hidden[learned], output_head(model), labels[learned]).logprobs
        counts = learned.sum(dim=1).tolist()
        found += [(-part.sum().item(), len(part)) for part in logprobs.split(counts)]
    return found


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
