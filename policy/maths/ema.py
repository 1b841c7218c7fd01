"""Exponential moving average of weights (InstructGPT C.4: decay 0.992)."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(ema_params: Iterable[Tensor], params: Iterable[Tensor], decay: float) -> None:
    """Update in place: ema = decay * ema + (1 - decay) * param, pair by pair, in the type and device of `ema_params`.

    Keep the average in float32: in bfloat16, steps of 0.8 % are lost to rounding."""
    for average, param in zip(ema_params, params, strict=True):
        if average.shape != param.shape:
            raise ValueError(
                f"average {tuple(average.shape)} and weight {tuple(param.shape)} differ: pass both in the same order."
            )
        average.lerp_(param.to(average), 1.0 - decay)
