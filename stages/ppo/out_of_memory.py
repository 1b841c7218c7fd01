"""Run work a few rows at a time, and retry it with half as many when memory runs out.

A retry repeats the whole work. The work must therefore have no side effects except gradients, which are dropped: no
optimiser steps, no draws from a random generator.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from policy.errors import ModelError
from stages.ppo.settings import PpoConfig

logger = logging.getLogger("triptych.ppo")
T = TypeVar("T")
CURE = (
    "set gradient_checkpointing, lora or shared_backbone, or lower max_prompt_length, sampling.max_new_tokens or "
    "pretraining_rows ('triptych plan RECIPE' shows where memory is used)."
)
SIGNS = ("DefaultCPUAllocator", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


class RowsAtOnce:
    """Number of rows of some work that fit in memory, as found so far. It is only ever halved."""

    def __init__(self, rows: int, what: str) -> None:
        self.rows, self.what = rows, what

    def do(self, work: Callable[[int], T], *models: nn.Module) -> T:
        """Return `work(rows)`. If it runs out of memory, drop the models' gradients and retry with half the rows.

        Raises ModelError if not even one row fits."""
        while True:
            try:
                return work(self.rows)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise ModelError(f"ppo: out of memory in {self.what}, one episode at a time; {CURE}") from error
            # Outside `except`, so that the error's frames, and the tensors they hold, are already freed.
            for model in models:
                model.zero_grad()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.rows //= 2
            logger.warning(
                "ppo: out of memory in %s; continuing with %d episodes at a time, with the same result",
                self.what,
                self.rows,
            )


class RowsThatFit(NamedTuple):
    """Rows at a time in the phases of PPO that can split their work."""

    trunk: RowsAtOnce
    reading: RowsAtOnce
    update: RowsAtOnce


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error means that memory ran out. On a CPU, and where a GPU's libraries allocate by themselves, only
    the message says so."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def micro_batch(config: PpoConfig) -> int:
    """Episodes per forward pass of the update, as the recipe sets it."""
    minibatch = config.rollout_batch // config.minibatches
    return min(config.micro_batch or minibatch, minibatch)


def rows_that_fit(config: PpoConfig) -> RowsThatFit:
    """Rows as the recipe sets them. Reading a rollout needs no gradients, so it takes as many rows as sampling."""
    reading = min(config.sampling.batch_size, config.rollout_batch)
    return RowsThatFit(
        RowsAtOnce(reading, "the frozen layers"),
        RowsAtOnce(reading, "reading the rollout"),
        RowsAtOnce(micro_batch(config), "the update"),
    )
