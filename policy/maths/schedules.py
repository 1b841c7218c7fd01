"""Learning rates as multipliers of the peak; `step` counts optimiser steps (or iterations) from 0."""

import math


def cosine_to_fraction(step: int, total: int, floor: float = 0.1) -> float:
    """Half a cosine from 1 at step 0 to `floor` at `total`, and `floor` from there on (InstructGPT C.1, C.2)."""
    progress = min(step / _positive("total", total), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_from_fraction(step: int, warmup: int, start: float = 0.1) -> float:
    """A straight line from `start` at step 0 to 1 at step `warmup`, then 1; no warm-up at all with `warmup=0`.

    InstructGPT C.4 gives 10 iterations from a tenth of the peak; that the line is straight is our reading.
    """
    return 1.0 if step >= warmup else start + (1.0 - start) * step / warmup


def linear_to_zero(step: int, total: int) -> float:
    """1 at step 0 down to 0 at `total`, and 0 from there on (lm-human-preferences)."""
    return max(0.0, 1.0 - step / _positive("total", total))


def _positive(name: str, value: int) -> int:
    if value <= 0:
        raise ValueError(f"{name}={value} must be above 0: a schedule needs steps to run over.")
    return value
