"""Shared by the two stages on Hugging Face's Trainer: its arguments from a recipe, and its log in metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from policy.precision import Precision, choose_precision
from stages.errors import ConfigError
from stages.progress import progress
from stages.settings import TrainingPrecision
from stages.tracking import Tracker

A = TypeVar("A", bound=TrainingArguments)
LOWER = "lower the stage's optimizer.learning_rate, or raise its warm-up"


def split_batch(section: str, batch: int, micro_batch: int) -> tuple[int, int]:
    """-> (rows per forward pass, passes per optimiser step). Raises ConfigError if the batch is not divisible."""
    micro_batch = micro_batch or batch
    if batch % micro_batch:
        raise ConfigError(
            f"{section}: a batch of {batch} is not a multiple of the micro-batch of {micro_batch}; change one of them"
        )
    return micro_batch, batch // micro_batch


def count_steps(section: str, n_rows: int, batch: float, epochs: float) -> int:
    """Total number of optimiser steps. Raises ConfigError if the data do not fill one batch."""
    if n_rows < batch:
        raise ConfigError(
            f"{section}: {n_rows} rows within max_length are fewer than one batch of {batch:g}; "
            "give more data, a smaller batch or a larger max_length"
        )
    return max(1, math.floor(epochs * n_rows / batch))


def training_precision(setting: TrainingPrecision | None, device: torch.device, model: str | Path) -> Precision:
    """The type that SFT and reward model compute in while they train. The weights and their updates are float32 in any
    case. Without a setting nothing is measured: a recipe's numbers then depend on the kind of device alone."""
    if setting is None:
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return choose_precision(setting, device, model)


def trainer_arguments(
    directory: Path,
    device: torch.device,
    seed: int,
    rows: int,
    accumulate: int,
    steps: int,
    max_grad_norm: float,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Keyword arguments for TrainingArguments or SFTConfig. `precision`: the type of the model's own forward pass."""
    return {
        "output_dir": str(directory / "trainer"),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": accumulate,
        "max_steps": steps,
        "max_grad_norm": max_grad_norm,
        "logging_steps": max(1, steps // 100),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # transformers would log 0 for a loss that is not a number
        "save_strategy": "no",  # a stage publishes once, at the end
        "report_to": "none",  # the Tracker reports instead
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device.type == "cpu",
        "bf16": precision == "bfloat16",  # TRL's default would be autocast everywhere
        "dataloader_pin_memory": device.type == "cuda",
        "disable_tqdm": False,
        "remove_unused_columns": False,
    }


def on_one_device(arguments: A) -> A:
    """The same arguments for one GPU: with several, the Trainer would split each batch over them by DataParallel, which
    would cut packed rows apart."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class SortedWithinBatches(Sampler[int]):
    """Samples random batches, new ones each epoch, and sorts the rows of each by length.

    The micro-batches of an optimiser step then have rows of similar length: less padding, same gradient."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch = torch.tensor(lengths), batch
        self.rng = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.lengths), generator=self.rng)
        for rows in order.split(self.batch):
            yield from rows[self.lengths[rows].argsort(stable=True)].tolist()

    def __len__(self) -> int:
        return len(self.lengths)


class RecordCallback(ProgressCallback):
    """Shows the progress bar and logs to metrics.jsonl instead of printing over the bar."""

    KEPT = (
        "loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "mean_token_accuracy",
        "num_tokens",
        "pretraining_loss",
        "pair_accuracy",
        "margin",
    )

    def __init__(self, tracker: Tracker, prefix: str, steps_before: int = 0) -> None:
        super().__init__()
        self.tracker, self.prefix, self.steps_before = tracker, prefix, steps_before

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.training_bar = progress(total=state.max_steps, desc=self.prefix, unit="step")
        self.current_step = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kept = {f"{self.prefix}/{name}": float(logs[name]) for name in self.KEPT if logs and name in logs}
        if kept:
            self.tracker.log(kept, step=self.steps_before + state.global_step)
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if not math.isfinite(float((logs or {}).get("loss", 0))):
            raise ConfigError(f"{self.prefix}: the loss is not a finite number in step {state.global_step}; {LOWER}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if not all(bool(weight.isfinite().all()) for weight in model.parameters() if weight.requires_grad):
            raise ConfigError(f"{self.prefix}: weights are not finite after step {state.global_step}; {LOWER}")
