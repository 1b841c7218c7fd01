"""Win rates and means with their uncertainty, for reports."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Interval(NamedTuple):
    low: float
    high: float


class WinRate(NamedTuple):
    rate: float  # wins plus half the ties, over all
    standard_error: float  # sample standard deviation / sqrt(n); NaN for a single comparison
    normal: Interval  # rate -+ z standard errors; may leave [0, 1]; of width 0 if all agree
    wilson: Interval  # stays within [0, 1] and always has a width; report this one
    n: int


class Mean(NamedTuple):
    mean: float
    standard_error: float  # sample standard deviation / sqrt(n); NaN for a single value
    n: int


def win_rate(wins: int, ties: int, losses: int, z: float = Z_95) -> WinRate:
    """Win rate of a policy against a baseline on the same prompts; a tie counts as half a win."""
    n = wins + ties + losses
    if n == 0 or min(wins, ties, losses) < 0:
        raise ValueError(f"{wins} wins, {ties} ties, {losses} losses: give at least one in all, and none negative.")
    rate = (wins + 0.5 * ties) / n
    squares = wins * (1 - rate) ** 2 + ties * (0.5 - rate) ** 2 + losses * rate**2
    standard_error = math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan
    center = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return WinRate(
        rate,
        standard_error,
        Interval(rate - z * standard_error, rate + z * standard_error),
        Interval(center - half_width, center + half_width),
        n,
    )


def mean_with_standard_error(values: Sequence[float]) -> Mean:
    """Mean of independent values (one per prompt, or one per seed) with its standard error."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("the mean needs at least one value; none was given.")
    standard_error = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.nan
    return Mean(float(array.mean()), standard_error, array.size)
