"""Scores written answers, and averages scores over rows and tasks with 95 % intervals."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from stages.statistics import Z_95, mean_with_standard_error, win_rate

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
# In scripts without spaces between words, each character counts as a word.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+")


class Estimate(NamedTuple):
    value: float
    low: float  # 95 % interval; NaN if it cannot be computed
    high: float


def normalise_answer(text: str) -> str:
    """Lower-case; remove punctuation, articles and extra spaces (SQuAD's official evaluation).

    A step that would leave nothing is skipped: the answers "A" and "?" stay."""
    lowered = " ".join(text.lower().split())
    bare = " ".join(lowered.translate(PUNCTUATION).split()) or lowered
    return " ".join(ARTICLES.sub(" ", bare).split()) or bare


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the normalised answer is one of the normalised references, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(reference) for reference in references})


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the F-measure of the longest common subsequence of words, for the best reference (Lin 2004, 2).

    Words are runs of lower-cased letters and digits, unstemmed, as in the library rouge_score."""
    return max(_rouge_l(WORD.findall(answer.lower()), WORD.findall(text.lower())) for text in references)


def _rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_subsequence(answer, reference)
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    lengths = [0] * (len(other) + 1)  # for the part of `one` read so far and each prefix of `other`
    for word in one:
        before = lengths
        lengths = [0]
        for place, word_there in enumerate(other):
            lengths.append(before[place] + 1 if word == word_there else max(lengths[-1], before[place + 1]))
    return lengths[-1]


def share(values: Sequence[float]) -> Estimate:
    """Return the share of ones among zeros and ones, with Wilson's interval."""
    wins = sum(value == 1 for value in values)
    rate = win_rate(wins, 0, len(values) - wins)
    return Estimate(rate.rate, rate.wilson.low, rate.wilson.high)


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean of independent rows with a normal interval; a row may be a difference between two models."""
    return mean_of_tasks([values])


def mean_of_tasks(tasks: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of the tasks' means, all tasks weighing the same (T0 6, FLAN 3).

    The interval is for other rows of these tasks, not for other tasks: tasks are strata, each with its own variance.
    It is NaN if no task's rows differ, since then there is no variance to estimate it from."""
    means = [mean_with_standard_error(values) for values in tasks]
    value = sum(one.mean for one in means) / len(means)
    half_width = Z_95 * math.sqrt(sum(one.standard_error**2 for one in means)) / len(means) or math.nan
    return Estimate(value, value - half_width, value + half_width)
