from __future__ import annotations

import math

import numpy as np
import pytest

from stages.reward_model.measures import clustered_rate, gain_over, judge_scores, quarters, scored_pairs, table
from stages.statistics import win_rate


def three_prompts() -> dict[str, object]:
    """A: ranks 1 2 3, the model swaps the last two. B: ranks 1 2, right. C: a tie and a loser, equal scores."""
    return {
        "scores": [3.0, 1.0, 2.0, 1.0, 0.0, 5.0, 4.0, 4.0],
        "lengths": [5, 4, 9, 2, 2, 3, 7, 3],
        "ranks": [(1, 2, 3), (1, 2), (1, 1, 2)],
        "prompts": ["a", "b", "c"],
    }


def test_every_pair_with_a_preference_is_there_once_with_its_lengths_and_ranks() -> None:
    pairs = scored_pairs(**three_prompts())
    assert pairs.difference.tolist() == [2.0, 1.0, -1.0, 1.0, 1.0, 0.0]
    assert pairs.longer.tolist() == [1.0, 0.0, 0.0, 0.5, 0.5, 1.0]
    assert pairs.rank_distance.tolist() == [1, 2, 1, 1, 1, 1]
    assert pairs.prompt.tolist() == [0, 0, 0, 1, 2, 2]


def test_accuracy_counts_equal_scores_as_wrong_and_equal_lengths_as_half() -> None:
    judged = judge_scores(scored_pairs(**three_prompts()))
    assert judged["pair_accuracy"] == 4 / 6
    assert (judged["n"], judged["n_prompts"], judged["equal_scores"]) == (6, 3, 1)
    assert judged["longer_wins_accuracy"] == pytest.approx(3 / 6)
    assert judged["shorter_wins_accuracy"] == pytest.approx(3 / 6)
    assert judged["accuracy_when_the_shorter_is_better"]["rate"] == 1 / 2
    assert judged["accuracy_when_the_longer_is_better"]["rate"] == 1 / 2
    assert judged["accuracy_when_equally_long"]["n"] == 2
    assert [(row["name"], row["rate"], row["n"]) for row in judged["by_rank_distance"]] == [
        ("1", 3 / 5, 5),
        ("2", 1, 1),
    ]


def test_a_model_that_only_counts_tokens_gains_nothing_over_length_and_correlates_with_it() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.permutation(400)
    ranks = [(1, 2) if rng.random() < 0.7 else (2, 1) for _ in range(200)]
    judged = judge_scores(scored_pairs(lengths.astype(float), lengths.tolist(), ranks, range(200)))
    assert judged["length_correlation"] == pytest.approx(1)
    assert judged["length_correlation_within_prompts"] == pytest.approx(1)
    assert judged["pair_accuracy"] == judged["longer_wins_accuracy"]
    assert judged["accuracy_when_the_longer_is_better"]["rate"] == 1
    assert judged["accuracy_when_the_shorter_is_better"]["rate"] == 0


def test_a_prompt_s_level_does_not_count_as_a_love_of_length() -> None:
    """Long prompts' answers are long and score high as a whole; within a prompt the shorter one scores higher."""
    scores = [value for level in range(50) for value in (10.0 * level + 1, 10.0 * level)]
    lengths = [value for level in range(50) for value in (20 * level + 1, 20 * level + 2)]
    judged = judge_scores(scored_pairs(scores, lengths, [(1, 2)] * 50, range(50)))
    assert judged["length_correlation"] > 0.9
    assert judged["length_correlation_within_prompts"] == pytest.approx(-1)


def test_pairs_that_are_alone_have_the_wilson_interval() -> None:
    credit = np.array([1.0] * 70 + [0.0] * 30)
    rate, wilson = clustered_rate(credit, np.arange(100)), win_rate(70, 0, 30).wilson
    assert (rate.low, rate.high) == (pytest.approx(wilson.low, abs=2e-3), pytest.approx(wilson.high, abs=2e-3))


def test_pairs_that_are_right_or_wrong_together_count_as_one() -> None:
    """Ten copies of each verdict: the interval is that of the hundred prompts, not of the thousand pairs."""
    credit = np.repeat(np.array([1.0] * 70 + [0.0] * 30), 10)
    rate, wilson = clustered_rate(credit, np.repeat(np.arange(100), 10)), win_rate(70, 0, 30).wilson
    assert rate.n == 1000
    assert (rate.low, rate.high) == (pytest.approx(wilson.low, abs=2e-3), pytest.approx(wilson.high, abs=2e-3))
    all_right = clustered_rate(np.ones(1000), np.repeat(np.arange(100), 10))
    assert all_right.low == pytest.approx(win_rate(100, 0, 0).wilson.low)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """600 draws of 60 prompts with 6 pairs each, which share a prompt's own chance to be right."""
    rng = np.random.default_rng(0)
    covered = 0
    cluster = np.repeat(np.arange(60), 6)
    for _ in range(600):
        chance = np.clip(0.7 + 0.25 * rng.choice([-1, 1], 60), 0, 1)
        rate = clustered_rate((rng.random(360) < chance[cluster]).astype(float), cluster)
        covered += rate.low <= 0.7 <= rate.high
    assert 0.91 < covered / 600 < 0.98


def test_the_gain_over_a_baseline_is_measured_on_the_same_pairs() -> None:
    right, baseline = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0])
    told = gain_over(right, baseline, np.arange(4))
    half = 1.959963984540054 * math.sqrt(4 / 3 * 4 * 0.25) / 4
    assert told == {"gain": 0.5, "low": pytest.approx(0.5 - half), "high": pytest.approx(0.5 + half)}


def test_a_table_has_a_row_for_each_label_and_none_for_pairs_without_one() -> None:
    pairs = scored_pairs(**three_prompts())
    rows = table(pairs, ["x", "x", "y", None, "y", "y"])
    assert [(row["name"], row["n"], row["rate"]) for row in rows] == [("x", 2, 1.0), ("y", 3, 1 / 3)]


def test_many_margins_are_told_in_quarters_and_few_one_by_one() -> None:
    assert quarters([0.5, None, 2.0]) == [(0.5, 0.5), None, (2.0, 2.0)]
    told = quarters([float(i) for i in range(1, 102)])
    assert sorted(set(told)) == [(1, 26), (26, 51), (51, 76), (76, 101)]
    assert told[0] == (1, 26) and told[100] == (76, 101) and told.count((26, 51)) == 25


def test_without_a_pair_nothing_is_claimed() -> None:
    empty = scored_pairs([1.0, 2.0], [1, 2], [(1, 1)], ["a"])
    assert judge_scores(empty) == {"pair_accuracy": None, "n": 0}
