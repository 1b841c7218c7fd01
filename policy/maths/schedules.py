"""Learning-rate schedules as multipliers of the peak; `step` counts optimiser steps (or iterations) from 0."""

import math


def cosine_to_fraction(step: int, total: int, floor: float = 0.1) -> float:
    """Half a cosine from 1 at step 0 to `floor` at step `total`, then `floor` (InstructGPT C.1, C.2)."""
    progress = min(step / _positive("total", total), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_from_fraction(step: int, warmup: int, start: float = 0.1) -> float:
    """Linear from `start` at step 0 to 1 at step `warmup`, then 1; no warm-up with `warmup=0`.

    InstructGPT C.4 warms up over 10 iterations from a tenth of the peak; that this is linear is our assumption."""
    return 1.0 if step >= warmup else start + (1.0 - start) * step / warmup


def linear_to_zero(step: int, total: int) -> float:
    """Linear from 1 at step 0 to 0 at step `total`, then 0 (lm-human-preferences)."""
    return max(0.0, 1.0 - step / _positive("total", total))


def _positive(name: str, value: int) -> int:
    if value <= 0:
        raise ValueError(f"{name}={value} must be above 0: a schedule needs at least one step.")
    return value
