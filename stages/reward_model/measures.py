"""Measures how far a reward model can be trusted, on pairs that people or a judge function have ordered.

Pairs of one prompt are not independent: K answers give up to K (K - 1) / 2 of them. So all intervals treat prompts, not
pairs, as independent samples, and are wider than binomial ones if a prompt's pairs tend to be right or wrong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from reward.calibration import (
    Floats,
    calibrated_error,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_curve,
)
from reward.ranking_loss import pair_index
from reward.scoring import score_responses
from stages.statistics import Z_95

if TYPE_CHECKING:
    from stages.reward_model.trainer import Ranking

Ints = npt.NDArray[np.int64]
FEW = 6  # up to this number of distinct values a table has a row for each


class ScoredPairs(NamedTuple):
    """All pairs with a preference; ties are left out. All fields are (pairs,), but the last three (answers,)."""

    difference: Floats  # score of the preferred answer minus that of the other
    longer: Floats  # 1 if the preferred answer is longer, 0.5 if both are equally long, else 0
    rank_distance: Ints  # difference of the two ranks
    prompt: Ints  # number of the pair's prompt; equal prompts have the same number
    comparison: Ints  # number of the pair's comparison, from 0
    scores: Floats
    lengths: Ints  # tokens, EOS included
    answer_prompt: Ints  # number of the answer's prompt, as in `prompt`


class Rate(NamedTuple):
    rate: float
    low: float  # 95 % interval
    high: float
    n: int


def scored_pairs(
    scores: Sequence[float], lengths: Sequence[int], ranks: Sequence[Sequence[int]], prompts: Sequence[Any]
) -> ScoredPairs:
    """Make pairs from the scores and lengths of all answers, in one list in the order of the comparisons, and each
    comparison's ranks and prompt (anything hashable)."""
    score, length = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.int64)
    pairs = pair_index(ranks)
    winner, loser = pairs.winner.numpy(), pairs.loser.numpy()
    rank = np.array([value for given in ranks for value in given], dtype=np.int64)
    answer_comparison = np.repeat(np.arange(len(ranks)), [len(given) for given in ranks])
    numbers: dict[Any, int] = {}
    prompt = np.array([numbers.setdefault(text, len(numbers)) for text in prompts], dtype=np.int64)
    return ScoredPairs(
        score[winner] - score[loser],
        (length[winner] > length[loser]) + 0.5 * (length[winner] == length[loser]),
        rank[loser] - rank[winner],
        prompt[answer_comparison[winner]],
        answer_comparison[winner],
        score,
        length,
        prompt[answer_comparison],
    )


def clustered_rate(credit: Floats, cluster: Ints) -> Rate:
    """Mean of `credit` (0 to 1 each) with its Wilson interval at the effective number of pairs: n over the design
    effect (variance between clusters over binomial variance), at most n (Kish 1965)."""
    n = len(credit)
    rate = float(credit.mean())
    sums = np.bincount(cluster, weights=credit - rate)
    n_clusters = len(np.unique(cluster))
    worth = float(n)
    if n_clusters > 1 and 0 < rate < 1:
        variance = n_clusters / (n_clusters - 1) * float((sums**2).sum()) / n**2
        worth = min(n, rate * (1 - rate) / variance) if variance > 0 else n
    elif n_clusters < n:
        worth = float(n_clusters)  # all right or all wrong: count prompts, as their pairs may depend on each other
    center = (rate + Z_95**2 / (2 * worth)) / (1 + Z_95**2 / worth)
    half = Z_95 * math.sqrt(rate * (1 - rate) / worth + Z_95**2 / (4 * worth**2)) / (1 + Z_95**2 / worth)
    return Rate(rate, max(0.0, center - half), min(1.0, center + half), n)


def is_right(pairs: ScoredPairs) -> Floats:
    """(pairs,) 1 if the preferred answer scores strictly higher, else 0."""
    return (pairs.difference > 0).astype(np.float64)


def judge_scores(pairs: ScoredPairs) -> dict[str, Any]:
    """All metrics of a set of pairs, as JSON values; None where the pairs do not determine one."""
    n = len(pairs.difference)
    if not n:
        return {"pair_accuracy": None, "n": 0}
    right = is_right(pairs)
    accuracy = clustered_rate(right, pairs.prompt)
    longer, shorter = float(pairs.longer.mean()), float(1 - pairs.longer.mean())
    curve = reliability_curve(pairs.difference)
    fitted = fit_temperature(pairs.difference)
    scaled = pairs.difference / (fitted.temperature or 1.0)
    lengths = pairs.lengths.astype(np.float64)
    return {
        "pair_accuracy": accuracy.rate,
        "pair_accuracy_low": accuracy.low,
        "pair_accuracy_high": accuracy.high,
        "n": n,
        "n_prompts": len(np.unique(pairs.prompt)),
        "longer_wins_accuracy": longer,
        "shorter_wins_accuracy": shorter,
        "gain_over_length": gain_over(right, pairs.longer if longer >= shorter else 1 - pairs.longer, pairs.prompt),
        "accuracy_when_the_longer_is_better": rate_of(right, pairs, pairs.longer == 1),
        "accuracy_when_the_shorter_is_better": rate_of(right, pairs, pairs.longer == 0),
        "accuracy_when_equally_long": rate_of(right, pairs, pairs.longer == 0.5),
        "equal_scores": int((pairs.difference == 0).sum()),
        "log_loss": log_loss(pairs.difference),
        "calibration_error": expected_calibration_error(curve),
        "calibration_error_by_chance": calibrated_error(pairs.difference),
        "reliability": [row._asdict() for row in curve],
        "temperature": fitted.temperature,
        "log_loss_at_temperature": fitted.log_loss,
        "calibration_error_at_temperature": expected_calibration_error(reliability_curve(scaled)),
        "length_correlation": correlation(pairs.scores, lengths),
        "length_correlation_within_prompts": correlation(
            within(pairs.scores, pairs.answer_prompt), within(lengths, pairs.answer_prompt)
        ),
        "score_by_length": score_by_length(pairs),
        "by_rank_distance": table(pairs, pairs.rank_distance.tolist()),
    }


def gain_over(right: Floats, baseline: Floats, cluster: Ints) -> dict[str, float]:
    """Accuracy minus a baseline's on the same pairs, with its 95 % interval over prompts."""
    gain = right - baseline
    mean = float(gain.mean())
    sums = np.bincount(cluster, weights=gain - mean)
    n_clusters = len(np.unique(cluster))
    error = math.sqrt(n_clusters / max(1, n_clusters - 1) * float((sums**2).sum())) / len(gain)
    return {"gain": mean, "low": mean - Z_95 * error, "high": mean + Z_95 * error}


def rate_of(right: Floats, pairs: ScoredPairs, inside: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    return clustered_rate(right[inside], pairs.prompt[inside])._asdict() if inside.any() else None


def table(pairs: ScoredPairs, labels: Sequence[Any], names: Callable[[Any], str] = str) -> list[dict[str, Any]]:
    """Accuracy of the model and of "the longer answer wins" for each label of a pair, sorted; None gets no row."""
    right = is_right(pairs)
    places: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            places.setdefault(label, []).append(place)
    return [
        {
            "name": names(label),
            **clustered_rate(right[places[label]], pairs.prompt[places[label]])._asdict(),
            "longer_wins": float(pairs.longer[places[label]].mean()),
        }
        for label in sorted(places)
    ]


def quarters(values: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """Each value's class as (low, high): the value twice if at most FEW are distinct, else its quartile's bounds."""
    known = [value for value in values if value is not None]
    if len(set(known)) <= FEW:
        return [None if value is None else (value, value) for value in values]
    edges = np.quantile(known, [0, 0.25, 0.5, 0.75, 1]).tolist()
    places = np.searchsorted(edges[1:-1], [edges[0] if value is None else value for value in values])
    return [
        None if value is None else (edges[place], edges[place + 1]) for value, place in zip(values, places, strict=True)
    ]


def score_by_length(pairs: ScoredPairs) -> list[dict[str, float]]:
    """Mean length and mean score of the answers in each decile of length."""
    order = np.argsort(pairs.lengths, kind="stable")
    tenths = [part for part in np.array_split(order, 10) if len(part)]
    return [{"length": float(pairs.lengths[part].mean()), "score": float(pairs.scores[part].mean())} for part in tenths]


def correlation(a: Floats, b: Floats) -> float | None:
    """Pearson's r; None if one of the two does not vary."""
    if len(a) < 2 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def within(values: Floats, group: Ints) -> Floats:
    """Each value minus the mean of its group."""
    return values - (np.bincount(group, weights=values) / np.maximum(1, np.bincount(group)))[group]


def answer_scores(model: PreTrainedModel, rankings: Sequence[Ranking], pad_id: int) -> Floats:
    """(answers,) normalised scores of all answers, in the order of the rankings."""
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.responses]
    responses = [response for ranking in rankings for response in ranking.responses]
    return score_responses(model, prompts, responses, pad_id).double().numpy()


def judge_pairs(scores: Floats, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Accuracy on held-out pairs with its 95 % interval, and that of "the longer answer wins"; all other metrics are
    under `judgement`. `scores`: as from `answer_scores`."""
    if not rankings:
        return {"pair_accuracy": None, "n": 0}
    pairs = scored_pairs(
        scores.tolist(),
        [len(response) for ranking in rankings for response in ranking.responses],
        [ranking.ranks for ranking in rankings],
        [tuple(ranking.prompt) for ranking in rankings],
    )
    judged = judge_scores(pairs)
    main = ("pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy", "n")
    return {name: judged[name] for name in main} | {
        "judgement": {name: value for name, value in judged.items() if name not in main}
    }
