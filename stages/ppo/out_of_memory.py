"""Work that is done a few rows at a time, and with half as many where memory runs out.

The work is begun anew as a whole, so whoever does it must leave nothing behind but gradients, which are dropped: no
optimiser steps, no draws from a generator.
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
    "pretraining_rows ('triptych plan RECIPE' says what takes how much)."
)


class RowsAtOnce:
    """How many rows of some work fit, as found so far; only ever halved."""

    def __init__(self, rows: int, what: str) -> None:
        self.rows, self.what = rows, what

    def do(self, work: Callable[[int], T], *models: nn.Module) -> T:
        """What `work(rows)` returns. Where it runs out of memory, the models' gradients are dropped and it is done
        again with half the rows.

        Raises ModelError where not even one row fits.
        """
        while True:
            try:
                return work(self.rows)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise ModelError(f"ppo: out of memory in {self.what}, one episode at a time; {CURE}") from error
            # Outside of `except`: the error's frames, and with them what did not fit, are gone by now.
            for model in models:
                model.zero_grad()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.rows //= 2
            logger.warning(
                "ppo: out of memory in %s; from here on %d episodes at a time, with the same result",
                self.what,
                self.rows,
            )


class RowsThatFit(NamedTuple):
    """In the two parts of PPO that choose their rows themselves."""

    reading: RowsAtOnce
    update: RowsAtOnce


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had no room, as against a mistake in the work; PyTorch says the CPU's case in words alone."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in told or "not enough memory" in told


def micro_batch(config: PpoConfig) -> int:
    """Episodes in a forward pass of the update, as the recipe says."""
    minibatch = config.rollout_batch // config.minibatches
    return min(config.micro_batch or minibatch, minibatch)


def rows_that_fit(config: PpoConfig) -> RowsThatFit:
    """As many as the recipe says, until memory runs out. Without gradients as many fit as were sampled at once."""
    reading = min(config.sampling.batch_size, config.rollout_batch)
    return RowsThatFit(RowsAtOnce(reading, "reading the rollout"), RowsAtOnce(micro_batch(config), "the update"))
