"""Turns the answers of SFT model and policy into the numbers that compare them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.evaluate.answers import Answers
from stages.statistics import Z_95, mean_with_standard_error, win_rate


def summarise(answers: Answers) -> dict[str, float]:
    """Means over prompts; each part of the judge's grades and of the reward as <part>_mean."""
    n = len(answers.texts)
    scores = [grade | parts for grade, parts in zip(answers.grades, answers.parts, strict=True)]
    means = {f"{part}_mean": sum(row[part] for row in scores) / n for part in scores[0]}
    second = {"second_reward_mean": sum(answers.second) / n} if answers.second else {}
    return {
        **means,
        "reward_mean": sum(answers.rewards) / n,
        **second,
        "length_mean": sum(answers.lengths) / n,
        "eos_rate": sum(answers.ended) / n,
        "kl": sum(answers.kl) / n,
    }


def decisive(answers: Answers) -> list[float]:
    """The scores that decide who wins each prompt: the judge's gold scores; without a judge those of the second reward
    model, or else the rewards."""
    scores = answers.second or answers.rewards
    return [grade.get("gold", score) for grade, score in zip(answers.grades, scores, strict=True)]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Win rate with its 95 % interval (Wilson); equal scores count as half a win."""
    wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
    ties = sum(a == b for a, b in zip(ours, theirs, strict=True))
    rate = win_rate(wins, ties, len(ours) - wins - ties)
    return {"win_rate": rate.rate, "win_rate_low": rate.wilson.low, "win_rate_high": rate.wilson.high}


def gain(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean of ours - theirs in standard deviations of theirs, with its 95 % interval, paired by prompt, under `name`;
    {} if theirs do not vary."""
    deviation = float(np.std(theirs, ddof=1))
    if not deviation:
        return {}
    mean = mean_with_standard_error([(a - b) / deviation for a, b in zip(ours, theirs, strict=True)])
    half = Z_95 * mean.standard_error
    return {name: mean.mean, f"{name}_low": mean.mean - half, f"{name}_high": mean.mean + half}
