"""Predicts the time of a PPO iteration on this machine by timing each of its passes on random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from policy.language_model import choose_device, load_config
from policy.memory.heap import give_back_free_memory
from stages.errors import ConfigError
from stages.optimizer import make_optimizer
from stages.ppo.learner import hold_freed_memory
from stages.ppo.out_of_memory import ran_out_of_memory
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig
from stages.settings import OptimizerConfig
from workbench.plan.passes import Models, read, sample, update
from workbench.plan.trunk import WHOLE

TRIES, ENOUGH = 15, 1.5  # per pass: largest number of tries, and seconds after which no further try starts


class Clock:
    """Times parts of an iteration and adds them up by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def run(self, name: str, times: float, work: Callable[[], Any]) -> Any:
        result = work()  # warm-up: the first call selects kernels and allocates memory
        taken: list[float] = []
        while len(taken) < TRIES and sum(taken) < ENOUGH:
            taken.append(self._time(work))
        self.seconds[name] = self.seconds.get(name, 0.0) + times * median(taken)
        return result

    def prepare(self, work: Callable[[], Any]) -> None:
        work()

    def _time(self, work: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        give_back_free_memory(self.device)  # as before every pass of PPO
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def predict_seconds(
    config: PpoConfig, model: Path | str, prompt_length: int, reward: RewardModelConfig | None = WHOLE
) -> dict[str, float]:
    """Return the seconds of each phase of an iteration, with this model in every role. Needs the memory for training
    one policy and one value model.

    Raises ConfigError if the memory is too small."""
    device = choose_device(config.device)
    hold_freed_memory(config, device)
    clock = Clock(device)
    try:
        models = Models(load_config(model), config, device, reward)
        sample(clock, models.policy, config, prompt_length)
        read(clock, models, config, prompt_length)
        update(clock, models, config, prompt_length, partial(take_step, clock, config))
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        cure = "give --no-time, or run triptych plan on the machine that will run PPO"
        raise ConfigError(f"plan: PPO's passes do not fit into the memory of device '{device}'; {cure}") from error
    return clock.seconds


def take_step(clock: Clock, config: PpoConfig, phase: str, model: PreTrainedModel, settings: OptimizerConfig) -> None:
    """Time an optimiser step on the model's present gradient, then clear the gradient."""
    optimizer, _ = make_optimizer(model.parameters(), settings, config.iterations)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()

    clock.run(phase, config.inner_epochs * config.minibatches, step)
    optimizer.zero_grad()
