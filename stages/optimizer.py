"""Optimiser and learning-rate schedule from a recipe's settings, for all stages."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from policy.maths.schedules import cosine_to_fraction, linear_to_zero, warmup_from_fraction
from stages.settings import OptimizerConfig


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, total_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the trainable parameters, and its schedule, whose steps are those the caller makes."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over each weight and its moments, also on a CPU
    )

    def multiplier(step: int) -> float:
        warmup = warmup_from_fraction(step, config.warmup_steps)
        if config.schedule == "cosine":
            return warmup * cosine_to_fraction(step, total_steps, config.final_fraction)
        if config.schedule == "linear":
            return warmup * linear_to_zero(step, total_steps)
        return warmup

    return optimizer, LambdaLR(optimizer, multiplier)
