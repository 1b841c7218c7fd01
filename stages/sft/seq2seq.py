"""Stage 1 for encoder-decoder models (FLAN, Wei et al. 2021; T0, Sanh et al. 2021), on Hugging Face's Seq2SeqTrainer.

Records, templates and settings are those of `stages/sft/stage.py`. The loss is the token mean over the whole
accumulated batch; the models' own loss would be a mean per micro-batch. Only the last answer of a conversation has a
loss; the encoder reads everything before it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from data_schema import Demonstration, Records
from policy.adapters import add_lora, describe_reach, merged, reach, untrained_ids
from policy.language_model import choose_device, save_checkpoint
from policy.memory.checkpointing import checkpointed
from policy.precision import trained_attention
from policy.seq2seq import (
    NO_LABEL,
    answer_token_logprobs,
    collate_pairs,
    encode_pairs,
    load_seq2seq_model,
    set_seq2seq_template,
)
from stages.doubts import warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, write_seen_prompts
from stages.optimizer import make_optimizer
from stages.sft.demonstrations import load_demonstrations, lost_demonstrations
from stages.sft.held_out_losses import RowLoss, row_loss, summarise_losses, write_losses
from stages.sft.settings import SftConfig
from stages.trainer import (
    RecordCallback,
    SortedWithinBatches,
    count_steps,
    on_one_device,
    split_batch,
    trainer_arguments,
    training_precision,
)

logger = logging.getLogger("triptych.sft")
ENCODED_AT_ONCE, HELD_OUT_BATCH = 1000, 16


def run(config: SftConfig, job: Job) -> StageResult:
    """Fine-tune `config.base_model` on demonstrations; the output loads with AutoModelForSeq2SeqLM."""
    check_settings(config)
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    precision = training_precision(config.precision, device, config.base_model)
    model, tokenizer = load_seq2seq_model(config.base_model, device, config.pad_token)
    template = set_seq2seq_template(tokenizer, config.template)

    read = load_demonstrations(config, job)
    train, train_dropped = encode_pair_records(read.train, tokenizer, config.max_length)
    held_out, held_out_dropped = encode_pair_records(read.held_out, tokenizer, config.max_length)
    warn(job.tracker, lost_demonstrations(config, read, train_dropped + held_out_dropped))

    micro_batch, accumulate = split_batch("sft", config.batch_size, config.micro_batch_size)
    steps = count_steps("sft", len(train), config.batch_size, config.epochs)
    trained: Any = model
    adapters: dict[str, Any] = {}
    if config.lora:
        new = untrained_ids(model, tokenizer, {i for name in ("prompt", "answer") for row in train[name] for i in row})
        trained = add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, "SEQ_2_SEQ_LM", new)
        adapters = {"lora": reach(trained)}
        logger.info(describe_reach("sft", adapters["lora"]))
    trainer = PairTrainer(
        trained,
        args=on_one_device(
            Seq2SeqTrainingArguments(
                **trainer_arguments(
                    job.directory,
                    device,
                    job.seed,
                    micro_batch,
                    accumulate,
                    steps,
                    config.optimizer.max_grad_norm,
                    precision,
                )
            )
        ),
        train_dataset=train.remove_columns("record"),
        data_collator=PairCollator(model),
        compute_loss_func=token_mean_loss,
        optimizers=make_optimizer(trained.parameters(), config.optimizer, steps),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RecordCallback(job.tracker, "sft"))
    with checkpointed(config.gradient_checkpointing, model), trained_attention(device, precision == "bfloat16"):
        trainer.train()

    tuned: PreTrainedModel = merged(trained) if config.lora else trained
    losses = held_out_losses(tuned, held_out, read.held_out)
    metrics: dict[str, Any] = {"steps": steps, "packed": False, "template": template, **adapters}
    metrics |= {"precision": precision} | summarise_losses(losses)
    if losses:
        logged = ("held_out_loss", "held_out_bits_per_byte")
        job.tracker.log({f"sft/{name}": metrics[name] for name in logged}, step=steps)
    save_checkpoint(tuned, tokenizer, job.output)
    write_losses(job.output, losses)
    write_seen_prompts(job.output, read.seen)
    return StageResult(metrics, {"data": read.account(train_dropped + held_out_dropped)})


def check_settings(config: SftConfig) -> None:
    """Raise ConfigError for settings that need a decoder-only model."""
    for name, off in (("quantization", None), ("pretraining_data", []), ("select", "last")):
        if getattr(config, name) != off:
            raise ConfigError(f"sft.{name} is for decoder-only models, not for an encoder-decoder; leave it out")
    if config.residual_dropout:
        raise ConfigError(
            f"sft.residual_dropout is {config.residual_dropout:g}, but an encoder-decoder has its own dropout "
            "(dropout_rate in its config.json); set it to 0"
        )


class PairCollator:
    """Rows of the data set -> keyword arguments of the model's forward pass, with labels."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate_pairs(self.model, [row["prompt"] for row in rows], [row["answer"] for row in rows])
        return {**batch.inputs(torch.device("cpu")), "labels": batch.answers}


class PairTrainer(Seq2SeqTrainer):
    """Rows of similar length share a forward pass; each optimiser step is a random sample of rows."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedWithinBatches:
        lengths = [len(row) for row in self.train_dataset["prompt"]]
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return SortedWithinBatches(lengths, rows_per_step, self.args.seed)


def token_mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Summed cross-entropy in nats, divided by the number of answer tokens in the whole optimiser step."""
    return -answer_token_logprobs(outputs.logits, labels).sum() / num_items_in_batch


def encode_pair_records(
    records: Records[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Any, int]:
    """Demonstrations -> (datasets.Dataset, number dropped because prompt and answer together exceed max_length).

    Columns: `prompt` and `answer` (ids), and `record`, the demonstration's index in `records`."""
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema({"prompt": pa.list_(pa.int32()), "answer": pa.list_(pa.int32()), "record": pa.int64()})
    batches, dropped = [], 0
    for start in range(0, len(records), ENCODED_AT_ONCE):
        pairs = encode_pairs(tokenizer, [record.messages for record in records[start : start + ENCODED_AT_ONCE]])
        kept = [i for i, pair in enumerate(pairs) if len(pair.prompt) + len(pair.answer) <= max_length]
        dropped += len(pairs) - len(kept)
        columns = [[pairs[i].prompt for i in kept], [pairs[i].answer for i in kept], [start + i for i in kept]]
        batches.append(pa.record_batch(columns, schema=schema))
    if dropped:
        logger.warning("sft: dropped %d of %d demonstrations: longer than %d tokens", dropped, len(records), max_length)
    return Dataset(pa.Table.from_batches(batches, schema=schema)), dropped


@torch.no_grad()
def held_out_losses(model: PreTrainedModel, rows: Any, records: Records[Demonstration]) -> list[RowLoss]:
    """The loss of each encoded row of the held-out demonstrations."""
    model.eval()
    losses = []
    for start in range(0, len(rows), HELD_OUT_BATCH):
        part = rows[start : start + HELD_OUT_BATCH]
        batch = collate_pairs(model, part["prompt"], part["answer"])
        logits = model(**batch.inputs(model.device)).logits
        nats = -answer_token_logprobs(logits, batch.answers.to(logits.device)).sum(1)
        tokens = (batch.answers != NO_LABEL).sum(1)
        for place, row_nats, row_tokens in zip(part["record"], nats.tolist(), tokens.tolist(), strict=True):
            record = records[place]
            learned = len(record.messages[-1].content.encode())  # earlier answers have no loss
            losses.append(row_loss(record, row_nats, row_tokens)._replace(bytes=learned))
    return losses
