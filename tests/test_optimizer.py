from __future__ import annotations

import math

import pytest
import torch

from stages.optimizer import make_optimizer
from stages.settings import OptimizerConfig


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    """The learning rate of each step."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, schedule = make_optimizer([parameter], config, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_begins_at_the_peak_and_nears_a_tenth_of_it() -> None:
    got = rates(OptimizerConfig(learning_rate=2.0), 100)
    assert got[0] == pytest.approx(2.0)
    assert got[50] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert got[-1] == pytest.approx(2.0 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.99))))
    assert got == sorted(got, reverse=True)


def test_linear_falls_evenly_to_zero() -> None:
    assert rates(OptimizerConfig(learning_rate=1.0, schedule="linear"), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_warm_up_begins_at_a_tenth_and_constant_stays() -> None:
    got = rates(OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_steps=9), 12)
    assert got[0] == pytest.approx(0.1)
    assert got[9:] == pytest.approx([1.0] * 3)
    assert got == sorted(got)


def test_adam_gets_the_settings_of_the_recipe() -> None:
    config = OptimizerConfig(betas=(0.5, 0.6), eps=1e-5, weight_decay=0.25)
    (group,) = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config, 1)[0].param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-5, 0.25)


def test_frozen_weights_are_left_out() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    trained = torch.nn.Parameter(torch.ones(2))
    optimizer, _ = make_optimizer([frozen, trained], OptimizerConfig(), 1)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(trained)]
