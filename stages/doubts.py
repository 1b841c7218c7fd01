"""What makes a stage's result doubtful, in words: what was seen, why it matters, what to do.

Each function returns a sentence or two for `Tracker.warn`, or None if nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.tracking import Tracker

LOST = 0.2  # share of the rows that may be dropped without a word
ENDED = 0.1  # share of the answers that should end by themselves
PAIRS = 50  # held-out pairs, below which an accuracy says little
DISTINCT = 0.9  # share of distinct answers, relative to the SFT model's, that a policy should keep
ALIKE = 0.25  # share of the answers that may begin alike
MARKED = 0.25  # share of the answers that may contain special tokens
HARMLESS = ("duplicate prompt",)  # of these rows another one is kept


def warn(tracker: Tracker, *doubts: str | None) -> None:
    """Show those that are not None."""
    for doubt in doubts:
        if doubt is not None:
            tracker.warn(doubt)


def rows_lost(what: str, total: int, dropped: Mapping[str, int], fixes: Mapping[str, str]) -> str | None:
    """Too many of `total` rows are dropped. `fixes`: reason -> what to do about it."""
    counted = {reason: count for reason, count in dropped.items() if reason not in HARMLESS and count}
    lost = sum(counted.values())
    if lost <= LOST * total:
        return None
    main = max(counted, key=lambda reason: counted[reason])
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counted.items())
    fix = fixes.get(main, "see what these rows are with 'triptych data inspect'")
    return (
        f"{what}: {lost} of {total} rows are left out ({reasons}), so the result is of other data than you gave. To "
        f"keep them, {fix}."
    )


def few_ends(what: str, rate: float, max_new_tokens: int, setting: str) -> str | None:
    """Hardly any answer ends by itself."""
    if rate >= ENDED:
        return None
    return (
        f"{what}: {rate:.1%} of the answers end by themselves; the others are cut off after {max_new_tokens} tokens, "
        f"so scores and comparisons are of unfinished texts. Raise {setting}.max_new_tokens if answers need more room; "
        "otherwise the SFT model has not learned to end answers: train it for more epochs, or check its template with "
        "'triptych data inspect'."
    )


def all_empty(what: str, texts: Sequence[str]) -> str | None:
    """Every answer is empty."""
    if not texts or any(texts):
        return None
    return (
        f"{what}: all {len(texts)} answers are empty, so the comparison says nothing. Look at the training data's "
        "answers with 'triptych data inspect', and at the KL and score of the training run."
    )


def same_score(what: str, scores: Sequence[float]) -> str | None:
    """All answers have one score."""
    if len(scores) < 2 or min(scores) != max(scores):
        return None
    return (
        f"{what}: all {len(scores)} answers have the score {scores[0]:.4g}, so there is no better or worse answer to "
        "learn from or to compare. Check the reward on these answers; if they were all cut off, raise max_new_tokens."
    )


def collapsed(what: str, policy: Mapping[str, float], sft: Mapping[str, float]) -> str | None:
    """The policy gives different prompts the same answer or opening far more often than the SFT model."""
    seen = []
    if policy["distinct_share"] < DISTINCT * sft["distinct_share"]:
        seen.append(f"{policy['distinct_share']:.1%} of its answers are distinct (SFT: {sft['distinct_share']:.1%})")
    if policy["same_opening_share"] > max(ALIKE, sft["same_opening_share"]):
        shares = f"{policy['same_opening_share']:.1%} (SFT: {sft['same_opening_share']:.1%})"
        seen.append(f"{shares} begin with the same four tokens")
    if not seen:
        return None
    return (
        f"{what}: the policy answers different prompts alike: {' and '.join(seen)}. It may have found an answer that "
        "the reward model likes whatever the prompt, and then a win rate proves nothing. Look at the samples; raise "
        "ppo.kl_coef or train for fewer iterations."
    )


def special_tokens_unseen(what: str, share: float) -> str | None:
    """Functions see answers without the special tokens in them."""
    if share <= MARKED:
        return None
    return (
        f"{what}: {share:.0%} of the answers contain special tokens, which are left out of the text that reward "
        "functions and judges see. If they should count, make them ordinary tokens of the tokenizer."
    )


def held_out_pairs(judged: Mapping[str, Any], setting: str, what: str = "reward_model") -> str | None:
    """A reward model was measured on no or few pairs, or is no better than chance or than the answers' length."""
    n = judged["n"]
    if not n:
        return (
            f"{what}: there are no held-out pairs, so nothing shows that it is better than chance, and PPO would "
            f"follow it all the same. Raise {setting}."
        )
    low, high, accuracy = (judged[name] for name in ("pair_accuracy_low", "pair_accuracy_high", "pair_accuracy"))
    measured = f"{accuracy:.1%} of {n} held-out pairs (95 % interval {low:.1%} to {high:.1%})"
    if n < PAIRS:
        return (
            f"{what}: its accuracy, {measured}, is measured on fewer than {PAIRS} pairs and says little. Raise "
            f"{setting}, or give more comparisons."
        )
    if low <= 0.5:
        return (
            f"{what}: it orders {measured} as the labeler did, which chance explains, so PPO would follow noise. "
            "Give more comparisons, train for more epochs, or check the labels with 'triptych data inspect'."
        )
    by_length = max(judged["longer_wins_accuracy"], 1 - judged["longer_wins_accuracy"])
    if accuracy <= by_length:
        rule = "longer" if judged["longer_wins_accuracy"] >= 0.5 else "shorter"
        return (
            f"{what}: it orders {measured} as the labeler did, and always preferring the {rule} answer does as "
            f"well ({by_length:.1%}), so PPO may learn only length. 'triptych judge' shows more; give comparisons in "
            "which length does not decide."
        )
    return None
