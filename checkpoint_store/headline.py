"""The few numbers that say how well a stage went, out of all metrics in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# stage -> (metric, its name in words); a dot leads into a nested mapping
HEADLINES: dict[str, tuple[tuple[str, str], ...]] = {
    "sft": (("held_out_loss", "held-out loss"), ("held_out_bits_per_byte", "bits per byte"), ("steps", "steps")),
    "comparisons": (("comparisons", "comparisons"), ("held_out", "held out"), ("pairs", "pairs")),
    "reward_model": (
        ("pair_accuracy", "pair accuracy"),
        ("n", "held-out pairs"),
        ("longer_wins_accuracy", "the longer answer wins"),
        ("pair_accuracy_low", "95 % lower end"),
        ("pair_accuracy_high", "95 % upper end"),
    ),
    "select": (("reward_mean", "reward"), ("selected_step", "selected step")),
    "ppo": (
        ("objective/score", "score"),
        ("objective/kl", "KL"),
        ("monitor/gold", "gold"),
        ("objective/eos_rate", "ended with EOS"),
        ("iterations", "iterations"),
    ),
    "evaluate": (
        ("models.ppo.win_rate", "win rate"),
        ("models.ppo.gold_mean", "gold"),
        ("models.sft.gold_mean", "gold of SFT"),
        ("models.ppo.kl", "KL"),
        ("models.ppo.win_rate_low", "95 % lower end"),
        ("models.ppo.win_rate_high", "95 % upper end"),
    ),
}
MOST = 8  # numbers of a stage that is not in the table


def headline(stage: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Name in words -> number, for the metrics that are there; the first few numbers of an unknown stage."""
    if stage not in HEADLINES:
        numbers = [(name, value) for name, value in metrics.items() if is_number(value)]
        return dict(numbers[:MOST])
    found = ((words, _look_up(metrics, name)) for name, words in HEADLINES[stage])
    return {words: value for words, value in found if is_number(value)}


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def short(value: float) -> str:
    """A number with four significant digits; whole numbers as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _look_up(metrics: Mapping[str, Any], dotted: str) -> Any:
    value: Any = metrics
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
