"""The second reward model, trained on the other half of the comparisons: it judges what PPO made of the first one.

It is a whole checkpoint in the folder `second/` of the first one's. Neither has seen a comparison or a prompt of the
other's, and they differ in seed. What both learn from the SFT model they share (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward.calibration import Floats
from stages.reward_model.measures import correlation, within
from stages.reward_model.trainer import Ranking

SECOND = "second"  # folder in the first model's checkpoint
CARD = """
## Second reward model

`second/` contains a second reward model of the same settings, a complete checkpoint like this one. Each was trained on
one half of the comparisons; they share no prompt. The second one is not for training a policy: it shows whether a
policy that was trained on this one has become better, or has only found this one's faults. {measured}
"""


def second_model(directory: Path) -> Path | None:
    """Directory of the second reward model in a reward model's checkpoint; None if it has none."""
    return directory / SECOND if (directory / SECOND / "config.json").is_file() else None


def score_correlations(first: Floats, second: Floats, rankings: Sequence[Ranking]) -> dict[str, float]:
    """Pearson's r of two models' scores (answers,) of held-out answers, over all and within prompts; {} where scores do
    not vary."""
    numbers: dict[Any, int] = {}
    prompts = [numbers.setdefault(tuple(each.prompt), len(numbers)) for each in rankings for _ in each.responses]
    group = np.array(prompts, dtype=np.int64)
    found = {
        "score_correlation": correlation(first, second),
        "score_correlation_within_prompts": correlation(within(first, group), within(second, group)),
    }
    return {name: value for name, value in found.items() if value is not None}


def describe_second(directory: Path, numbers: Mapping[str, Any]) -> None:
    """Add the second model to the card of the first one. `numbers`: the second model's metrics."""
    measured = ""
    if numbers["n"]:
        measured = f"On {numbers['n']} held-out pairs the second one prefers the better answer in "
        measured += f"{numbers['pair_accuracy']:.1%}"
        if "score_correlation" in numbers:
            measured += f"; the two models' scores of these answers correlate {numbers['score_correlation']:.2f}"
        measured += "."
    with (directory / "README.md").open("a", encoding="utf-8") as card:
        card.write(CARD.format(measured=measured).rstrip() + "\n")
