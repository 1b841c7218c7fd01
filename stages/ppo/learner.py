"""The state that PPO's updates change: models, optimisers and schedules. The same seed gives the same state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from policy.errors import ModelError
from policy.memory.heap import keep_freed_memory
from policy.pretraining import GradientBalance
from stages.optimizer import make_optimizer
from stages.ppo.experience import Experience
from stages.ppo.out_of_memory import RowsThatFit, rows_that_fit
from stages.ppo.record import Optimizers
from stages.ppo.rewards import model_for_values
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig


class Learner(NamedTuple):
    """The models that an update changes and the state it carries from one step to the next."""

    roles: Roles
    optimizers: Optimizers
    balance: GradientBalance | None  # None: the weight is the fixed pretraining_coef
    fits: RowsThatFit

    def with_trunk_states(self, experience: Experience, config: PpoConfig, directory: Path) -> Experience:
        """Recorded experience with the trunk's states, which records leave out; unchanged without a trunk."""
        rollout = self.roles.read_trunk(experience.rollout, config, self.fits.trunk, directory)
        return experience._replace(rollout=rollout)


def begin(config: PpoConfig, parents: Mapping[str, Path], seed: int, device: torch.device) -> Learner:
    """Load the models and make their optimisers, as before the first iteration; deterministic given the seed."""
    torch.manual_seed(seed)  # adapters are initialised from the global generator
    values_from = model_for_values(config.rewards, parents)
    roles = load_roles(
        parents["sft"],
        values_from,
        device,
        config.lora,
        seed,
        config.shared_backbone,
        config.offload_frozen,
        config.trainable_layers,
    )
    return make_learner(roles, config)


def make_learner(roles: Roles, config: PpoConfig) -> Learner:
    """Set the recipe's precision for these models and make their optimisers and schedules."""
    hold_freed_memory(config, roles.policy.device)
    roles.compute_in(config.precision)
    optimizers = {
        "policy": make_optimizer(roles.policy.parameters(), config.optimizer, config.iterations - config.value_warmup),
        "value": make_optimizer(roles.value.parameters(), config.value_optimizer, config.iterations),
    }
    ratio = config.pretraining_gradient_ratio
    return Learner(roles, optimizers, None if ratio is None else GradientBalance(ratio), rows_that_fit(config))


def hold_freed_memory(config: PpoConfig, device: torch.device) -> None:
    """Let the process keep freed memory when whole models train. With adapters saving memory matters more than time."""
    if config.lora is None:
        keep_freed_memory(device)


def take_step(learner: Learner, role: str, limit: float, step: dict[str, float], learns: bool = True) -> None:
    """Clip one model's gradient, add its norm to `step`, and take an optimiser step unless `learns` is False. Raises
    ModelError if the gradient is not finite."""
    optimizer, model = learner.optimizers[role][0], getattr(learner.roles, role)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
    if not math.isfinite(norm):
        raise ModelError(f"ppo: the {role} model's gradient is {norm}; lower ppo's learning rates or clip_range.")
    step[f"{role}/grad_norm"] = norm
    if learns:
        optimizer.step()
    optimizer.zero_grad()
