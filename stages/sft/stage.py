"""Stage 1, supervised fine-tuning (InstructGPT 3.5, C.1), on TRL's SFTTrainer.

Conversations are encoded here, not by the trainer. PPO and the reward model then see the same ids, the loss mask can be
tested, and demonstrations that are too long are counted. Differences from the paper: weight decay is a setting, and
several demonstrations can share a row, each attending only to itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from trl import SFTConfig

from data_schema import Demonstration, Document, Records, load_all
from policy.adapters import add_lora, describe_reach, reach, untrained_ids
from policy.encoding import encode, set_template
from policy.errors import ModelError
from policy.language_model import bare, choose_device, is_encoder_decoder, load_language_model, save_checkpoint
from policy.maths.logprobs import token_logprobs_from_hidden
from policy.memory.checkpointing import checkpointed
from policy.memory.quantized import quantize_nf4
from policy.precision import trained_attention
from policy.pretraining import pack_documents
from policy.reading.states import states_of_sequences
from policy.reading.ways import reading_of
from policy.sampling.rollout import output_head
from stages.doubts import warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account, write_seen_prompts
from stages.optimizer import make_optimizer
from stages.sft import seq2seq as sft_seq2seq
from stages.sft.candidates import (
    Candidate,
    candidate_folder,
    candidate_steps,
    copy_model,
    save_candidate,
    whole_model,
    write_index,
)
from stages.sft.demonstrations import load_demonstrations, lost_demonstrations
from stages.sft.held_out_losses import RowLoss, row_loss, summarise_losses, write_losses
from stages.sft.settings import SftConfig
from stages.sft.trainer import (
    IGNORED,
    CandidateCallback,
    DemonstrationTrainer,
    MixedBatches,
    PackingCollator,
    with_text,
)
from stages.trainer import (
    LOWER,
    RecordCallback,
    count_steps,
    on_one_device,
    split_batch,
    trainer_arguments,
    training_precision,
)

logger = logging.getLogger("triptych.sft")
LOGGED = ("held_out_loss", "held_out_bits_per_byte")


def run(config: SftConfig, job: Job) -> StageResult:
    """Fine-tune `config.base_model` on demonstrations; the output is a causal language model with its template, or an
    encoder-decoder if the base model is one."""
    if is_encoder_decoder(config.base_model):
        return sft_seq2seq.run(config, job)
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    precision = training_precision(config.precision, device, config.base_model)
    model, tokenizer = load_language_model(
        config.base_model, torch.device("cpu") if config.quantization else device, config.pad_token
    )
    template = set_template(tokenizer, config.template)

    read = load_demonstrations(config, job)
    train, train_dropped = encode_records(read.train, tokenizer, config.max_length)
    held_out, held_out_dropped = encode_records(read.held_out, tokenizer, config.max_length)
    warn(job.tracker, lost_demonstrations(config, read, train_dropped + held_out_dropped))
    if config.select == "held_out_loss" and not len(held_out):
        raise ConfigError(
            "sft.select is 'held_out_loss', but no held-out demonstration fits in max_length; raise sft.held_out"
        )
    train, mixed, steps, text_account = mix_pretraining(config, job, tokenizer, train.remove_columns("record"))

    micro_batch, accumulate = split_batch("sft", config.batch_size, config.micro_batch_size)
    rows = reading_of(model, max(map(len, train["input_ids"]), default=0)).rows
    packed = config.packing and rows == "packed"
    if rows in ("equal", "single"):  # another text in the batch would change what is read
        micro_batch, accumulate = 1, config.batch_size
    prepared = prepare_model(model, config, device, new_tokens(model, tokenizer, train) if config.lora else ())
    adapters = {"lora": reach(prepared)} if config.lora else {}
    if adapters:
        logger.info(describe_reach("sft", adapters["lora"]))
    optimizer = make_optimizer(prepared.parameters(), config.optimizer, steps)
    arguments = SFTConfig(
        **trainer_arguments(
            job.directory, device, job.seed, micro_batch, accumulate, steps, config.optimizer.max_grad_norm, precision
        ),
        max_length=None,  # longer demonstrations have been dropped and counted above
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=None,  # type: ignore[arg-type]  # deprecated name, on by default in TRL
        activation_checkpointing=False,
    )
    trainer = DemonstrationTrainer(
        prepared,
        args=on_one_device(arguments),
        train_dataset=train,
        data_collator=PackingCollator(tokenizer.pad_token_id, packed),
        processing_class=tokenizer,
        optimizers=optimizer,
    )
    trainer.mixed = mixed
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RecordCallback(job.tracker, "sft"))

    def measure(trained: Any, step: int) -> list[RowLoss]:
        found = held_out_loss(bare(trained), held_out, device)
        losses = [
            row_loss(read.held_out[row["record"]], nats, tokens)
            for row, (nats, tokens) in zip(held_out, found, strict=True)
        ]
        if losses:
            logged = {name: value for name, value in summarise_losses(losses).items() if name in LOGGED}
            job.tracker.log({f"sft/{name}": value for name, value in logged.items()}, step=step)
            if not math.isfinite(logged["held_out_loss"]):
                raise ConfigError(f"sft: the held-out loss is not a finite number after step {step}; {LOWER}")
        return losses

    folder = candidate_folder(config, job)
    kept: list[Candidate] = []
    if config.select != "last":

        def keep(trained: Any, step: int) -> None:
            kept.append(save_candidate(trained, tokenizer, folder, step, measure(trained, step)))

        # With select: reward_model the last candidate is the published model, which is measured and saved below.
        last = () if config.select == "held_out_loss" else (steps,)
        trainer.add_callback(CandidateCallback(set(candidate_steps(config, steps)).difference(last), keep))
    with checkpointed(config.gradient_checkpointing, model), trained_attention(device, precision == "bfloat16"):
        trainer.train()

    if config.select == "held_out_loss":
        chosen = min(kept, key=lambda candidate: summarise_losses(candidate.losses)["held_out_loss"])
        copy_model(chosen.directory, job.output)
    else:
        chosen = Candidate(steps, job.output, measure(trainer.model, steps))
        save_checkpoint(whole_model(trainer.model), tokenizer, job.output)
        write_losses(job.output, chosen.losses)
    if config.select == "reward_model":
        write_index(job.output, [candidate.step for candidate in kept], steps, read.held_out)
    write_seen_prompts(job.output, read.seen)
    metrics: dict[str, Any] = {"steps": steps, "packed": packed, "template": template, **adapters}
    metrics |= {"precision": precision} | summarise_losses(chosen.losses)
    if kept:
        metrics |= {"selected_step": chosen.step, "candidates": [describe(candidate) for candidate in kept]}
    return StageResult(metrics, {"data": read.account(train_dropped + held_out_dropped)} | text_account)


def new_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any) -> tuple[int, ...]:
    """The special tokens of the training rows that the base model never learned. Their rows train with the adapters, or
    no answer would end with a new EOS."""
    used = {i for row in train["input_ids"] for i in row}
    return untrained_ids(model, tokenizer, used)


def prepare_model(
    model: PreTrainedModel, config: SftConfig, device: torch.device, token_ids: Sequence[int] = ()
) -> Any:
    """Prepare the loaded model for training: quantisation, dropout and adapters as the recipe sets them. `token_ids`
    are new tokens whose rows train with the adapters."""
    if config.quantization:
        model = quantize_nf4(model, device)
    add_residual_dropout(model, config.residual_dropout)
    adapted: Any = model
    if config.lora:
        adapted = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "CAUSAL_LM", token_ids)
    return adapted


def mix_pretraining(
    config: SftConfig, job: Job, tokenizer: PreTrainedTokenizerBase, train: Any
) -> tuple[Any, MixedBatches | None, int, dict[str, Any]]:
    """-> (training rows including any pretraining text, sampler for both, optimiser steps, account of the text).

    `epochs` counts passes over the demonstrations, with or without pretraining text."""
    if not config.pretraining_data:
        return train, None, count_steps("sft", len(train), config.batch_size, config.epochs), {}
    share, n = config.pretraining_share, len(train)
    steps = count_steps("sft", n, config.batch_size * (1 - share), config.epochs)
    documents = load_all(config.pretraining_data, Document, job.seed)
    texts = pack_documents(tokenizer, documents, config.pretraining_length)
    train = with_text(train, texts)
    mixed = MixedBatches([len(row) for row in train["input_ids"]], n, config.batch_size, steps, share, job.seed)
    account = data_account(documents) | {"rows": len(texts), "rows_read": mixed.text_rows(steps)}
    return train, mixed, steps, {"pretraining_data": account}


def describe(candidate: Candidate) -> dict[str, float]:
    """Step and losses of a candidate, for the manifest."""
    return {"step": candidate.step, **{k: v for k, v in summarise_losses(candidate.losses).items() if k in LOGGED}}


def encode_records(
    records: Records[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Any, int]:
    """Demonstrations -> (datasets.Dataset of input_ids and labels, number dropped as longer than max_length).

    Labels are the ids of the assistant's tokens, EOS included, and IGNORED elsewhere; `record` is the demonstration's
    index in `records`. The rows are an Arrow table, built in batches."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

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
        logger.warning("sft: dropped %d of %d demonstrations: longer than %d tokens", dropped, len(records), max_length)
    # Give a fingerprint, because computing one would make datasets copy the whole table.
    return Dataset(pa.Table.from_batches(batches, schema=schema), fingerprint=generate_random_fingerprint()), dropped


def _batches(records: Records[Demonstration], size: int) -> Iterator[list[Demonstration]]:
    for start in range(0, len(records), size):
        yield [records[i] for i in range(start, min(start + size, len(records)))]


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: Any, device: torch.device) -> list[tuple[float, int]]:
    """For each held-out demonstration: summed cross-entropy of its response tokens in nats, and their number."""
    model.eval()
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        ids, labels = (torch.tensor(list(chain(*batch[name])), device=device) for name in ("input_ids", "labels"))
        lengths = torch.tensor([len(row) for row in batch["input_ids"]], device=device)
        ends = lengths.cumsum(0) - 1
        predicting = torch.ones_like(ids, dtype=torch.bool).index_fill(0, ends, False)  # a row's last state is not
        labels = labels.roll(-1)[predicting]
        hidden = states_of_sequences(model, ids, lengths, torch.zeros_like(lengths), lengths - 1, packed=False)
        learned = labels != IGNORED
        logprobs = token_logprobs_from_hidden(hidden[learned], output_head(model), labels[learned]).logprobs
        counts = [int(part.sum()) for part in learned.split((lengths - 1).tolist())]
        found += [(-part.sum().item(), len(part)) for part in logprobs.split(counts)]
    return found


def add_residual_dropout(model: PreTrainedModel, share: float) -> None:
    """Add dropout to the output of each attention and MLP block (InstructGPT C.1: 0.2), active in training only.

    It is a forward hook on the blocks, because most current architectures have no such setting. Raises ModelError if no
    block is found."""
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
            f"sft.residual_dropout: no attention or MLP block found by name in {type(model).__name__}; set it to 0"
        )
    for block in blocks:
        block.register_forward_hook(drop)
