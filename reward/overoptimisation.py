"""Over-optimisation of an imperfect reward (Gao, Schulman, Hilton 2022). Distance d = sqrt(KL in nats)."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class BestOfNMeans(NamedTuple):
    n: npt.NDArray[np.int64]  # (N,) 1..N
    proxy: Floats  # (N,) expected proxy score of the best of n
    gold: Floats  # (N,) expected gold score of that same response


class Optimum(NamedTuple):
    distance: float  # the distance d at which the gold reward is highest
    reward: float


def best_of_n_kl(n: int) -> float:
    """KL in nats between best-of-n and the sampled policy: log n - (n - 1) / n; an upper bound if ties occur."""
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    return math.log(n) - (n - 1) / n


def best_of_n_means(proxy: npt.ArrayLike, gold: npt.ArrayLike) -> BestOfNMeans:
    """Unbiased expected scores of the best of n by proxy, for n = 1..N, from N samples of one prompt. Both (N,).

    The i-th lowest of N is the best of a random subset of n in C(i-1, n-1) of C(N, n) cases. Samples with the same
    proxy share their mean gold score, as if ties were broken at random."""
    proxy_scores = np.asarray(proxy, dtype=np.float64)
    gold_scores = np.asarray(gold, dtype=np.float64)
    if proxy_scores.ndim != 1 or proxy_scores.shape != gold_scores.shape or len(proxy_scores) == 0:
        raise ValueError(f"proxy {proxy_scores.shape} and gold {gold_scores.shape} must be lists of equal length.")
    levels, level = np.unique(proxy_scores, return_inverse=True)
    gold_of_level = np.bincount(level, weights=gold_scores) / np.bincount(level)
    order = np.sort(level)
    weights = _best_of_n_weights(len(order))
    return BestOfNMeans(np.arange(1, len(order) + 1), weights @ levels[order], weights @ gold_of_level[order])


def _best_of_n_weights(size: int) -> Floats:
    """[n-1, i-1] = C(i-1, n-1) / C(size, n), computed by ratios from the top so that no binomial overflows."""
    weights = np.zeros((size, size))
    for n in range(1, size + 1):
        higher = np.arange(size, n, -1)
        weights[n - 1, n - 1 :] = (n / size * np.cumprod(np.r_[1.0, (higher - n) / (higher - 1)]))[::-1]
    return weights


def best_of_n_form(distance: npt.ArrayLike, alpha: float, beta: float) -> Floats:
    """Gold reward of best-of-n at distance d: d (alpha - beta d)."""
    d = np.asarray(distance, dtype=np.float64)
    return d * (alpha - beta * d)


def best_of_n_optimum(alpha: float, beta: float) -> Optimum:
    """Where `best_of_n_form` is highest: d = alpha / (2 beta), reward alpha^2 / (4 beta)."""
    return Optimum(alpha / (2 * beta), alpha**2 / (4 * beta))


def rl_form(distance: npt.ArrayLike, alpha: float, beta: float) -> Floats:
    """Gold reward of RL at distance d: d (alpha - beta log d), and 0 at d = 0. Not valid for d near 0."""
    d = np.asarray(distance, dtype=np.float64)
    return d * (alpha - beta * np.log(np.where(d > 0, d, 1.0)))


def rl_optimum(alpha: float, beta: float) -> Optimum:
    """Where `rl_form` is highest: d = exp(alpha / beta - 1), reward beta d."""
    distance = math.exp(alpha / beta - 1)
    return Optimum(distance, beta * distance)
