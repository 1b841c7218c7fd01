from __future__ import annotations

import re
from typing import Any

import pytest
from small_recipe import ListTracker

from stages.doubts import (
    all_empty,
    collapsed,
    few_ends,
    held_out_pairs,
    rows_lost,
    same_score,
    special_tokens_unseen,
    warn,
)


def judged(n: int = 500, accuracy: float = 0.8, low: float = 0.76, longer: float = 0.6) -> dict[str, Any]:
    return {
        "n": n,
        "pair_accuracy": accuracy,
        "pair_accuracy_low": low,
        "pair_accuracy_high": 2 * accuracy - low,
        "longer_wins_accuracy": longer,
    }


def shares(distinct: float, alike: float) -> dict[str, float]:
    return {"distinct_share": distinct, "same_opening_share": alike}


def test_a_good_result_is_not_doubted() -> None:
    tracker = ListTracker()
    warn(
        tracker,
        rows_lost("sft.data", 100, {"too long": 20, "duplicate prompt": 70}, {}),
        few_ends("ppo", 0.1, 64, "ppo.sampling"),
        all_empty("evaluate", ["", "word"]),
        same_score("ppo", [1.0, 1.0, 1.1]),
        same_score("ppo", [1.0]),
        special_tokens_unseen("ppo", 0.25),
        collapsed("evaluate", shares(0.9, 0.25), shares(1.0, 0.05)),
        collapsed("evaluate", shares(0.5, 0.6), shares(0.5, 0.6)),
        held_out_pairs(judged(), "reward_model.held_out"),
    )
    assert tracker.warnings == []


@pytest.mark.parametrize(
    "doubt, words",
    [
        (
            rows_lost("sft.data", 100, {"too long": 30, "empty": 2}, {"too long": "raise sft.max_length"}),
            r"sft\.data: 32 of 100 rows are left out \(too long: 30, empty: 2\).* raise sft\.max_length\.",
        ),
        (rows_lost("ppo.prompts", 10, {"odd": 3}, {}), "3 of 10 rows .*'triptych data inspect'"),
        (few_ends("ppo", 0.031, 64, "ppo.sampling"), "3.1% of the answers end .* 64 tokens.*ppo.sampling.max"),
        (all_empty("evaluate (ppo)", ["", ""]), "all 2 answers are empty"),
        (same_score("ppo", [-1.0, -1.0]), "all 2 answers have the score -1,"),
        (special_tokens_unseen("ppo", 0.3), "30% of the answers contain special tokens"),
        (
            collapsed("evaluate", shares(0.85, 0.2), shares(0.98, 0.1)),
            r"alike: 85.0% of its answers are distinct \(SFT: 98.0%\)\. .* proves nothing.* raise ppo.kl_coef or",
        ),
        (
            collapsed("evaluate", shares(0.98, 0.4), shares(0.98, 0.3)),
            r"alike: 40.0% \(SFT: 30.0%\) begin with the same four tokens\. .*samples",
        ),
        (collapsed("evaluate", shares(0.1, 0.4), shares(0.98, 0.3)), "10.0% of .* and 40.0% .* begin"),
        (held_out_pairs(judged(n=20), "x", "reward_model/second"), "^reward_model/second: its accuracy"),
        (held_out_pairs({"n": 0, "pair_accuracy": None}, "reward_model.held_out"), "no held-out pairs.*Raise rew"),
        (held_out_pairs(judged(n=20), "reward_model.held_out"), "80.0% of 20 held-out pairs .* fewer than 50 pairs"),
        (held_out_pairs(judged(accuracy=0.52, low=0.47), "x"), "52.0% of 500 held-out pairs .* chance explains"),
        (held_out_pairs(judged(longer=0.85), "x"), r"always preferring the longer answer does as well \(85.0%\)"),
        (held_out_pairs(judged(longer=0.15), "x"), r"always preferring the shorter answer does as well \(85.0%\)"),
    ],
)
def test_a_doubt_says_what_was_seen_with_its_figure_and_what_to_do(doubt: str, words: str) -> None:
    assert doubt is not None and re.search(words, doubt) and doubt.endswith(".") and "\n" not in doubt
