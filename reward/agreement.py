"""Measures of agreement between labelers who judged the same items: an upper limit for a reward model's accuracy.

`ratings` contains one list per item: the categories that its labelers gave, in any order and any number.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from reward.calibration import Floats

Level = Literal["nominal", "ordinal", "interval"]


def raw_agreement(ratings: Sequence[Sequence[float]]) -> float | None:
    """Share of labeler pairs that gave an item the same category, over all items (InstructGPT 3.4: 72.6 %).
    None if no item has two ratings."""
    counts = _counts(ratings)
    agreeing = (counts * (counts - 1)).sum()
    pairs = (counts.sum(1) * (counts.sum(1) - 1)).sum()
    return float(agreeing / pairs) if pairs else None


def krippendorff_alpha(ratings: Sequence[Sequence[float]], level: Level = "nominal") -> float | None:
    """1 - observed / expected disagreement; 1 is perfect, 0 is chance (Krippendorff 2011, sections C to E).

    Items may have different numbers of ratings; items with a single rating are left out. None if no item has two
    ratings, or if all ratings are the same category, so that chance and agreement cannot be distinguished."""
    counts = _counts([item for item in ratings if len(item) > 1])
    per_item = counts.sum(1)
    if not len(counts):
        return None
    # o[c, k]: pairs of ratings c and k of one item, each item weighted by its number of ratings
    coincidences = (counts / (per_item - 1)[:, None]).T @ counts - np.diag((counts / (per_item - 1)[:, None]).sum(0))
    totals = coincidences.sum(0)
    expected = np.outer(totals, totals) - np.diag(totals)
    distance = _distances(sorted({value for item in ratings if len(item) > 1 for value in item}), totals, level)
    if not (expected * distance).sum():
        return None
    return float(1 - (totals.sum() - 1) * (coincidences * distance).sum() / (expected * distance).sum())


def fleiss_kappa(ratings: Sequence[Sequence[float]]) -> float | None:
    """(agreement - chance) / (1 - chance), with chance from the frequency of each category (Fleiss 1971).

    None unless every item has the same number of ratings, at least two, and two categories occur."""
    counts = _counts(ratings)
    per_item = counts.sum(1)
    if not len(counts) or per_item.min() != per_item.max() or per_item[0] < 2:
        return None
    observed = ((counts * (counts - 1)).sum(1) / (per_item * (per_item - 1))).mean()
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((observed - chance) / (1 - chance)) if chance < 1 else None


def agreement(votes: Sequence[Mapping[str, float]]) -> dict[str, float | int | None]:
    """All measures above for items given as {labeler: category}; only items with two or more votes count."""
    shared = [item for item in votes if len(item) > 1]
    ratings = [list(item.values()) for item in shared]
    return {
        "items": len(shared),
        "labelers": len({labeler for item in shared for labeler in item}),
        "raw_agreement": raw_agreement(ratings),
        "krippendorff_alpha": krippendorff_alpha(ratings),
        "krippendorff_alpha_ordinal": krippendorff_alpha(ratings, "ordinal"),
        "fleiss_kappa": fleiss_kappa(ratings),
    }


def _counts(ratings: Sequence[Sequence[float]]) -> Floats:
    """(items, categories) number of times each item got each category; categories in rising order."""
    categories = {value: place for place, value in enumerate(sorted({value for item in ratings for value in item}))}
    counts = np.zeros((len(ratings), len(categories)))
    for row, item in enumerate(ratings):
        for value in item:
            counts[row, categories[value]] += 1
    return counts


def _distances(categories: Sequence[float], totals: Floats, level: Level) -> Floats:
    """(categories, categories) squared distance between two categories, by level of measurement."""
    if level == "nominal":
        return 1.0 - np.eye(len(categories))
    # Ordinal: the distance of two categories is the number of ratings between their midpoints.
    values = np.asarray(categories, dtype=np.float64) if level == "interval" else np.cumsum(totals) - totals / 2
    return (values[:, None] - values[None, :]) ** 2
