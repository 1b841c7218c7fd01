"""Calibration of a reward model as probabilities: P(a beats b) = sigmoid(r(a) - r(b)) (InstructGPT eq. 1).

A pair's confidence is sigmoid(|difference|), between 0.5 and 1. The pair is right if the answer that scores higher is
the preferred one. All functions take `differences` (n,): the score of the preferred answer minus that of the other, so
a pair that is right has a positive difference.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

N_BINS = 10  # of equal width between 0.5 and 1
LARGEST = 1e300  # the search for the inverse temperature stops here; beyond it all pairs are right
ORDINARY = 10  # differences between 2**-10 and 2**10 are fitted as they are, others in units of a power of two


class ReliabilityBin(NamedTuple):
    confidence: float  # mean over the bin's pairs
    accuracy: float  # share of them that are right; equal scores count half
    n: int


class Temperature(NamedTuple):
    """The best fit of P = sigmoid(difference / temperature); a temperature above 1 means the model is overconfident."""

    temperature: float | None  # None: no finite positive one, as all pairs are right or the mean difference is <= 0
    log_loss: float  # nats per pair at that temperature; log 2 is a coin flip


def reliability_curve(differences: npt.ArrayLike, n_bins: int = N_BINS) -> list[ReliabilityBin]:
    """Confidence against accuracy in `n_bins` bins of equal width; empty bins are left out (Guo et al. 2017, 2)."""
    confidence, right = _confidence_and_right(_checked(differences))
    bins = _bin_of(confidence, n_bins)
    return [
        ReliabilityBin(float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for inside in (bins == number for number in range(n_bins))
        if inside.any()
    ]


def expected_calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3)."""
    total = sum(row.n for row in curve)
    return sum(row.n * abs(row.accuracy - row.confidence) for row in curve) / total


def calibrated_error(differences: npt.ArrayLike, n_bins: int = N_BINS, draws: int = 200, seed: int = 0) -> float:
    """Calibration error that a perfectly calibrated model with these confidences has on average, by chance alone.

    `expected_calibration_error` is never 0 on few pairs; only an error above this one shows bad calibration."""
    confidence, _ = _confidence_and_right(_checked(differences))
    bins = _bin_of(confidence, n_bins)
    drawn = np.random.default_rng(seed).random((draws, len(confidence))) < confidence
    off = [np.abs((drawn[:, bins == number] - confidence[bins == number]).sum(1)) for number in range(n_bins)]
    return float(np.sum(off, axis=0).mean()) / len(confidence)


def log_loss(differences: npt.ArrayLike, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(difference / temperature), nats per pair."""
    return float(np.logaddexp(0.0, -_checked(differences) / temperature).mean())


def fit_temperature(differences: npt.ArrayLike) -> Temperature:
    """Fit the temperature by maximum likelihood (Platt scaling without offset; Guo et al. 2017, 4.2).

    The loss is convex in the inverse temperature, so bisection on its slope finds the only minimum."""
    d = _checked(differences)
    exponent = math.frexp(float(np.abs(d).max()))[1]
    unit = math.ldexp(1.0, min(exponent, 1023)) if abs(exponent) > ORDINARY else 1.0
    d = d / unit
    low, high = 0.0, 1.0
    if d.mean() <= 0:  # the slope at 0 is -mean / 2: the loss only grows from there
        return Temperature(None, math.log(2))
    if (d >= 0).all():
        return Temperature(None, math.log(2) * float((d == 0).mean()))
    while _slope(d, high) < 0 and high < LARGEST:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(d, middle) < 0 else (low, middle)
    temperature = 2 / (low + high)
    return Temperature(temperature * unit, log_loss(d, temperature))


def _slope(differences: Floats, inverse_temperature: float) -> float:
    """Derivative of the log loss with respect to the inverse temperature: mean of -d sigmoid(-d / T)."""
    return float((-differences * _sigmoid(-differences * inverse_temperature)).mean())


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


def _confidence_and_right(differences: Floats) -> tuple[Floats, Floats]:
    return _sigmoid(np.abs(differences)), (differences > 0) + 0.5 * (differences == 0)


def _bin_of(confidence: Floats, n_bins: int) -> npt.NDArray[np.int64]:
    return np.minimum(((confidence - 0.5) * 2 * n_bins).astype(np.int64), n_bins - 1)


def _checked(differences: npt.ArrayLike) -> Floats:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences of shape {d.shape} must be a list of one or more finite numbers.")
    return d
