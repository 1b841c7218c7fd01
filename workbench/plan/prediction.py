"""Predicts PPO's memory by role and by phase from a model's config.json, before any weights are loaded.

PPO's passes (passes.py) run on fake tensors, through the functions that PPO itself uses. So adapters, gradient
checkpointing, chunks of logits and all that a layer saves are counted as in PPO. The prediction is for float32 and the
CPU's attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from policy.language_model import load_config
from policy.reading.ways import reading_of
from stages.ppo.out_of_memory import micro_batch
from stages.ppo.settings import PpoConfig
from workbench.plan.live import LiveMemory
from workbench.plan.passes import Models, read, sample, size, update

CHUNK = 1024  # rows of logits that token_logprobs_from_hidden computes at a time


@dataclass(frozen=True)
class RoleMemory:
    """Bytes that a role takes throughout; its gradients exist only from a backward pass to the optimiser step."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    on_disk: bool = False  # the weights are in memory only while they are used


@dataclass(frozen=True)
class MemoryPlan:
    roles: tuple[RoleMemory, ...]
    phases: dict[str, int]  # name -> peak bytes in addition to `held`, gradients included
    kv_cache: int  # bytes, part of sampling
    logits: int  # bytes of one chunk of logits in the update

    @property
    def held(self) -> int:
        """Bytes between the phases: weights and optimiser states."""
        return sum(role.weights + role.optimizer for role in self.roles if not role.on_disk)

    @property
    def peak(self) -> int:
        """Peak bytes of all tensors together."""
        return self.held + max(self.phases.values())


def predict(
    config: PpoConfig,
    model: Path | str,
    prompt_length: int,
    with_reward_model: bool = True,
    frozen_layers: int | None = None,
) -> MemoryPlan:
    """Predict one PPO iteration with this model in every role and prompts of `prompt_length` tokens. With
    `frozen_layers`, reward and value model have that many layers and one more, as the recipe's reward model does."""
    models = Models(load_config(model), config, torch.device("meta"), frozen_layers)
    for each in (models.policy, models.value):
        reading_of(each, longest=0)  # tried here, since a trial needs real tensors
    roles = role_memory(models, config, with_reward_model)
    with FakeTensorMode():
        meter = MemoryMeter(imagine(models))
        kv_cache = sample(meter, models.policy, config, prompt_length)
        read(meter, models, config, prompt_length, with_reward_model)
        update(meter, models, config, prompt_length, lambda _, model, __: model.zero_grad())
    # They are used one after the other.
    meter.phases["reading"] += max((role.weights for role in roles if role.on_disk), default=0)
    rows_of_logits = min(CHUNK, micro_batch(config) * config.sampling.max_new_tokens)
    logits = 4 * rows_of_logits * models.policy.config.vocab_size
    return MemoryPlan(roles, meter.phases, kv_cache, logits)


def imagine(models: Models) -> list[Tensor]:
    """Replace every weight by a fake tensor (call this in FakeTensorMode) and return the fake tensors."""
    made: dict[int, Tensor] = {}  # tied weights stay tied
    for module in (*models.policy.modules(), *models.value.modules()):
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))
    return list(made.values())


def role_memory(models: Models, config: PpoConfig, with_reward_model: bool) -> tuple[RoleMemory, ...]:
    """Return each role's bytes: Adam has two values per trained weight; `ema_decay` adds one, counted as optimiser."""
    policy, value = size(models.policy, trained=True), size(models.value, trained=True)
    # A weight that several roles share is counted only in the first of them. A reward adapter is as large as the value
    # model's.
    own = size(models.value) - models.bare_value
    reference = models.bare_policy if config.lora is None else 0
    value_weights = own if config.shared_backbone else size(models.value)
    reward = models.bare_value if config.lora is None else own if config.shared_backbone else 0
    averages = policy if config.ema_decay else 0
    on_disk = config.lora is None and config.offload_frozen
    return (
        RoleMemory("policy", size(models.policy), policy, 2 * policy + averages),
        RoleMemory("reference", reference, 0, 0, on_disk),
        RoleMemory("value", value_weights, value, 2 * value),
        RoleMemory("reward", reward if with_reward_model else 0, 0, 0, on_disk),
    )


class MemoryMeter:
    """Runs parts of an iteration on fake tensors and records each phase's peak memory."""

    def __init__(self, known: list[Tensor]) -> None:
        self.live = LiveMemory(known)
        self.phases: dict[str, int] = {}

    def run(self, name: str, times: float, work: Callable[[], Any]) -> Any:
        self.live.restart_peak()
        with self.live:
            result = work()
        self.phases[name] = max(self.phases.get(name, 0), self.live.peak)
        return result

    def prepare(self, work: Callable[[], Any]) -> None:
        with self.live:
            work()
