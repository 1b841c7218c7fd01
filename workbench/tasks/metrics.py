"""How right a written answer is, and numbers over rows and tasks with their 95 % intervals."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from stages.statistics import Z_95, mean_with_standard_error, win_rate

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts that put no spaces between words count by the character.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+")


class Estimate(NamedTuple):
    value: float
    low: float  # 95 % interval; NaN where the rows leave it unknown
    high: float


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (SQuAD's official evaluation).

    What would leave nothing is not done: the answers "A" and "?" stay.
    """
    lowered = " ".join(text.lower().split())
    bare = " ".join(lowered.translate(PUNCTUATION).split()) or lowered
    return " ".join(ARTICLES.sub(" ", bare).split()) or bare


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the normalised references, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(reference) for reference in references})


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, with the reference that fits best (Lin 2004, 2).

    Words are runs of letters and digits in lower case, unstemmed, as in the library rouge_score.
    """
    return max(_rouge_l(WORD.findall(answer.lower()), WORD.findall(text.lower())) for text in references)


def _rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_subsequence(answer, reference)
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    lengths = [0] * (len(other) + 1)  # of what was read of `one` and each beginning of `other`
    for word in one:
        before = lengths
        lengths = [0]
        for place, word_there in enumerate(other):
            lengths.append(before[place] + 1 if word == word_there else max(lengths[-1], before[place + 1]))
    return lengths[-1]


def share(values: Sequence[float]) -> Estimate:
    """The share of ones among zeros and ones, with Wilson's interval."""
    wins = sum(value == 1 for value in values)
    rate = win_rate(wins, 0, len(values) - wins)
    return Estimate(rate.rate, rate.wilson.low, rate.wilson.high)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of independent rows, normal interval. Rows may be differences, two models on the same row."""
    return mean_of_tasks([values])


def mean_of_tasks(tasks: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the tasks' means, every task weighing the same (T0 6, FLAN 3).

    The interval is for other rows of these tasks, not for other tasks: tasks are strata, each with its own variance.
    Where no row differs from the others of its task, nothing tells how far the mean may be off.
    """
    means = [mean_with_standard_error(values) for values in tasks]
    value = sum(one.mean for one in means) / len(means)
    half_width = Z_95 * math.sqrt(sum(one.standard_error**2 for one in means)) / len(means) or math.nan
    return Estimate(value, value - half_width, value + half_width)
