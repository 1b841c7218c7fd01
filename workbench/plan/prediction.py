"""Predicts PPO's memory by role and by phase from a model's config.json, before any weights are loaded.

PPO's passes (passes.py) run on fake tensors, through the functions that PPO itself uses. So adapters, gradient
checkpointing, chunks of logits and all that a layer saves are counted as in PPO. The prediction is for float32 and the
CPU's attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from policy.language_model import load_config
from policy.reading.ways import reading_of
from stages.ppo.out_of_memory import micro_batch
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig
from workbench.plan.live import LiveMemory
from workbench.plan.passes import Models, hidden_size, read, sample, size, update
from workbench.plan.trunk import WHOLE, own_bytes

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
    trunk_states: int = 0  # bytes of an iteration's states of a frozen trunk
    trunk_states_on_disk: bool = False

    @property
    def held(self) -> int:
        """Bytes between the phases: weights, optimiser states, and a trunk's states if they are in memory."""
        states = 0 if self.trunk_states_on_disk else self.trunk_states
        return states + sum(role.weights + role.optimizer for role in self.roles if not role.on_disk)

    @property
    def peak(self) -> int:
        """Peak bytes of all tensors together."""
        return self.held + max(self.phases.values())


def predict(
    config: PpoConfig, model: Path | str, prompt_length: int, reward: RewardModelConfig | None = WHOLE
) -> MemoryPlan:
    """Predict one PPO iteration with this model in every role and prompts of `prompt_length` tokens. `reward` is the
    recipe's reward model: its settings decide its size, and what it shares with a trunk. None: the rewards are code."""
    models = Models(load_config(model), config, torch.device("meta"), reward)
    for each in models.all():
        reading_of(each, longest=0)  # tried here, since a trial needs real tensors
    roles = role_memory(models, config)
    with FakeTensorMode():
        meter = MemoryMeter(imagine(models))
        kv_cache = sample(meter, models.policy, config, prompt_length)
        read(meter, models, config, prompt_length)
        update(meter, models, config, prompt_length, lambda _, model, __: model.zero_grad())
    # They are used one after the other.
    meter.phases["reading"] += max((role.weights for role in roles if role.on_disk), default=0)
    rows_of_logits = min(CHUNK, micro_batch(config) * config.sampling.max_new_tokens)
    logits = 4 * rows_of_logits * models.policy.config.vocab_size
    kept = kept_states(models, config, prompt_length)
    return MemoryPlan(roles, meter.phases, kv_cache, logits, kept, kept > config.trunk_memory * 2**30)


def imagine(models: Models) -> list[Tensor]:
    """Replace every weight by a fake tensor (call this in FakeTensorMode) and return the fake tensors."""
    made: dict[int, Tensor] = {}  # tied weights stay tied
    for module in chain.from_iterable(model.modules() for model in models.all()):
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))
    return list(made.values())


def kept_states(models: Models, config: PpoConfig, prompt: int) -> int:
    """Bytes of the trunk's states of all texts of an iteration (policy/reading/kept_states.py); 0 without a trunk."""
    if models.trunk is None:
        return 0
    size_of = {"float32": 4, "bfloat16": 2}[config.trunk_states]
    tokens = config.rollout_batch * (prompt + config.sampling.max_new_tokens)
    return len(models.trunk.kept) * tokens * hidden_size(models.policy) * size_of


def role_memory(models: Models, config: PpoConfig) -> tuple[RoleMemory, ...]:
    """Return each role's bytes: Adam has two values per trained weight; `ema_decay` adds one, counted as optimiser.

    A weight that several roles share is counted only in the first of them."""
    policy, value = size(models.policy, trained=True), size(models.value, trained=True)
    averages = policy if config.ema_decay else 0
    reference, value_weights, reward = (over_trunk if models.trunk else whole_models)(models, config)
    on_disk = config.lora is None and config.offload_frozen and models.trunk is None
    return (
        RoleMemory("policy", size(models.policy), policy, 2 * policy + averages),
        RoleMemory("reference", reference, 0, 0, on_disk),
        RoleMemory("value", value_weights, value, 2 * value),
        RoleMemory("reward", reward if models.reward is not None else 0, 0, 0, on_disk),
    )


def whole_models(models: Models, config: PpoConfig) -> tuple[int, int, int]:
    """Bytes of the own weights of reference, value and reward model without a trunk. A reward adapter is as large as
    the value model's."""
    adapters = size(models.value) - models.bare_value
    reference = models.bare_policy if config.lora is None else 0
    value = adapters if config.shared_backbone else size(models.value)
    reward = models.bare_value if config.lora is None else adapters if config.shared_backbone else 0
    return reference, value, reward


def over_trunk(models: Models, config: PpoConfig) -> tuple[int, int, int]:
    """The same over a frozen trunk. With adapters the value model is over the reward model's upper layers, if it starts
    there, or over the policy's."""
    assert models.trunk is not None
    shape, reward = models.trunk, models.reward
    rewards = 0 if reward is None else own_bytes(reward, shape.alike)
    if config.lora is None:
        return size(models.policy, trained=True), models.own_value, rewards
    adapters = size(models.value) - models.bare_value
    return (0, models.own_value + adapters, 0) if shape.value_is_reward else (0, adapters, rewards)


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
