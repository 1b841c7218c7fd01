"""Candidate checkpoints of one SFT run: saved during training and measured; the selected one is published.

With `select: held_out_loss` they stay in the run directory. With `select: reward_model` they are in the folder
`candidates` of the published checkpoint, with the prompts for `stages/select` to answer: the reward model that it
selects with is itself trained from that checkpoint.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schema import Demonstration, Prompt, Records, dedup_prompts, prompt_messages, write_records
from policy.adapters import merged
from policy.language_model import save_checkpoint
from policy.memory.quantized import dequantize, is_quantized
from stages.job import SEEN_PROMPTS, Job
from stages.sft.held_out_losses import RowLoss, write_losses
from stages.sft.settings import SftConfig

CANDIDATES = "candidates"  # folder in a run directory or a checkpoint
INDEX, PROMPTS = f"{CANDIDATES}/index.json", f"{CANDIDATES}/prompts.jsonl.gz"
NOT_THE_MODEL = (CANDIDATES, SEEN_PROMPTS, "manifest.json")


class Candidate(NamedTuple):
    step: int
    directory: Path
    losses: list[RowLoss]


def candidate_steps(config: SftConfig, steps: int) -> list[int]:
    """The optimiser steps after which a candidate is saved: evenly spaced, always including the last."""
    if config.select == "last":
        return []
    n = config.checkpoints
    return sorted({max(1, round(steps * (i + 1) / n)) for i in range(n)})


def candidate_folder(config: SftConfig, job: Job) -> Path:
    """The folder for candidates; what an interrupted run left there is deleted."""
    folder = (job.output if config.select == "reward_model" else job.directory) / CANDIDATES
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def whole_model(model: Any, keep_adapters: bool = False) -> PreTrainedModel:
    """The model with any adapters merged into full-precision weights. With `keep_adapters` a copy is merged, so that
    the given model keeps its adapters."""
    if not hasattr(model, "merge_and_unload"):
        whole: PreTrainedModel = model
        return whole
    if keep_adapters:
        model = copy.deepcopy(model)
    if is_quantized(model):
        dequantize(model.to("cpu"))  # in full precision it may not fit on the training device
    return merged(model)


def save_candidate(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, step: int, losses: list[RowLoss]
) -> Candidate:
    """Save the model as a separate checkpoint, with its losses; training can continue."""
    directory = folder / f"step-{step}"
    save_checkpoint(whole_model(model, keep_adapters=True), tokenizer, directory)
    write_losses(directory, losses)
    return Candidate(step, directory, losses)


def copy_model(source: Path, target: Path) -> None:
    """Copy a checkpoint's model, without candidates, seen prompts and manifest."""
    shutil.copytree(
        source, target, dirs_exist_ok=True, ignore=lambda at, _: NOT_THE_MODEL if Path(at) == source else ()
    )


def write_index(output: Path, earlier: Sequence[int], last: int, held_out: Records[Demonstration]) -> None:
    """Write what `stages/select/stage.py` reads: each candidate's place, and the held-out demonstrations' prompts."""
    places = {step: f"{CANDIDATES}/step-{step}" for step in earlier} | {last: "."}
    (output / CANDIDATES).mkdir(parents=True, exist_ok=True)
    (output / INDEX).write_text(json.dumps(places, indent=1) + "\n")
    prompts = (
        Prompt(id=record.id, source=record.source, prompt=prompt_messages(record), group=record.group)
        for record in dedup_prompts(held_out)
    )
    write_records(output / PROMPTS, prompts)


def read_index(checkpoint: Path) -> Mapping[int, Path]:
    """Step -> directory of each candidate, in order; {} if a checkpoint has none."""
    index = checkpoint / INDEX
    if not index.exists():
        return {}
    return {int(step): checkpoint / place for step, place in json.loads(index.read_text()).items()}
