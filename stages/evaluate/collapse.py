"""Measures of collapse: whether a policy answers different prompts alike. Pure functions of answers as ids.

A reward model's faults are shared by all answers that use them, so a policy that exploits one drifts to a single answer
or opening for every prompt. A score cannot show this, and a second reward model may share the fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reward.sources import RepetitionPenalty

Ids = Sequence[int]
OPENING, SHARED, REPEATED = 4, 8, 3  # tokens of an opening, and of the n-grams counted over prompts and within answers


def measure_collapse(answers: Sequence[Ids]) -> dict[str, float]:
    """All measures of one model's answers to different prompts, each as ids without its stop token."""
    return {
        "distinct_share": distinct_share(answers),
        "same_opening_share": same_opening_share(answers),
        "repeated_8grams": repeated_ngrams(answers),
        "repetition": repetition(answers),
    }


def distinct_share(answers: Sequence[Ids]) -> float:
    """Number of different answers / number of answers."""
    return len({tuple(ids) for ids in answers}) / len(answers)


def same_opening_share(answers: Sequence[Ids], n: int = OPENING) -> float:
    """Share of the answers with the commonest opening, the first `n` tokens; a shorter answer is its own opening."""
    openings = Counter(tuple(ids[:n]) for ids in answers)
    return max(openings.values()) / len(answers)


def repeated_ngrams(answers: Sequence[Ids], n: int = SHARED) -> float:
    """Share of all n-grams that also occur in another answer; 0 if no answer has `n` tokens."""
    own = [ngrams(ids, n) for ids in answers]
    holders = Counter(gram for grams in own for gram in set(grams))  # in how many answers it occurs
    total = sum(map(len, own))
    return sum(holders[gram] > 1 for grams in own for gram in grams) / total if total else 0.0


def repetition(answers: Sequence[Ids], n: int = REPEATED) -> float:
    """Mean share of an answer's n-grams that occurred earlier in it; 0 for an answer without any."""
    return sum(RepetitionPenalty(n).share(ids) for ids in answers) / len(answers)


def ngrams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
