from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_recipe import ListTracker
from transformers import TrainerControl, TrainerState, TrainingArguments

from stages.errors import ConfigError
from stages.trainer import RecordCallback, count_steps, split_batch, trainer_arguments


def test_a_batch_is_split_into_equal_micro_batches() -> None:
    assert split_batch("sft", 32, 8) == (8, 4)
    assert split_batch("sft", 32, 0) == (32, 1)


@pytest.mark.parametrize("micro_batch", [5, 64])
def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(micro_batch: int) -> None:
    with pytest.raises(ConfigError, match=rf"sft: a batch of 32 .*micro-batch of {micro_batch}"):
        split_batch("sft", 32, micro_batch)


@pytest.mark.parametrize(("rows", "epochs", "steps"), [(100, 1.0, 10), (109, 1.0, 10), (100, 0.01, 1), (105, 2.0, 21)])
def test_steps_are_whole_batches_over_all_epochs(rows: int, epochs: float, steps: int) -> None:
    assert count_steps("sft", rows, 10, epochs) == steps


def test_fewer_rows_than_one_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sft: 9 rows .*fewer than one batch of 10"):
        count_steps("sft", 9, 10, 1.0)


def test_on_a_cpu_nothing_is_cast_to_bfloat16(tmp_path: Path) -> None:
    arguments = TrainingArguments(**trainer_arguments(tmp_path, torch.device("cpu"), 3, 4, 2, 10, 0.5))
    assert arguments.bf16 is False and arguments.fp16 is False
    assert (arguments.seed, arguments.data_seed, arguments.max_grad_norm) == (3, 3, 0.5)
    assert (arguments.train_batch_size, arguments.gradient_accumulation_steps, arguments.max_steps) == (4, 2, 10)
    assert arguments.report_to == []


def test_the_trainer_s_log_becomes_our_record_under_the_stage_s_name(tmp_path: Path) -> None:
    tracker = ListTracker()
    callback = RecordCallback(tracker, "sft")
    state = TrainerState(global_step=7)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    logs = {"loss": 1.5, "learning_rate": 0.1, "epoch": 0.2, "train_runtime": 9.0}
    callback.on_log(arguments, state, TrainerControl(), logs)
    callback.on_log(arguments, state, TrainerControl(), {"epoch": 1.0})
    assert tracker.records == [{"step": 7, "sft/loss": 1.5, "sft/learning_rate": 0.1}]
