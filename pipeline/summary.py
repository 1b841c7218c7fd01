"""Tables that the runner prints: the plan of a dry run, and the summary at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.configs import Recipe
from pipeline.plan import Selection, StagePlan

EVALUATION_ROWS = {
    "gold_mean": "gold score",
    "correctness_mean": "correctness",
    "style_mean": "style",
    "reward_mean": "reward",
    "length_mean": "length (tokens)",
    "eos_rate": "ended with EOS",
    "kl": "KL from SFT (nats)",
}


def print_plan(recipe: Recipe, plans: Sequence[StagePlan], to_run: Collection[str], selection: Selection) -> None:
    """Print which stages would run, and why."""
    table = Table(title=f"{recipe.name}, seed {recipe.seed}: dry run", title_justify="left")
    for column in ("stage", "would", "why", "key"):
        table.add_column(column, overflow="fold")
    for plan in plans:
        if plan.stage in to_run:
            why = "forced" if plan.exists else plan.reason
            table.add_row(plan.stage, "run", why, plan.key)
        else:
            table.add_row(plan.stage, "skip", "published" if plan.exists else "not selected", plan.key)
    Console().print(table)


def print_summary(summary: Mapping[str, Any], root: Path) -> None:
    """Print each stage's seconds and checkpoint, then the models side by side."""
    console = Console()
    table = Table(title=f"{summary['recipe']}, seed {summary['seed']}", title_justify="left")
    for column, side in (("stage", "left"), ("seconds", "right"), ("checkpoint", "left"), ("key", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]  # rich wants a Literal
    for stage, row in summary["stages"].items():
        before = " (before)" if row["skipped"] else ""
        table.add_row(stage, f"{row['seconds']:.1f}{before}", row["checkpoint"], row["key"][:12])
    console.print(table)

    if "evaluation" in summary:
        console.print(evaluation_table(summary["evaluation"]))
        ppo = summary["evaluation"]["ppo"]
        console.print(
            f"PPO wins {ppo['win_rate']:.1%} of prompts against SFT (95 % interval {ppo['win_rate_low']:.1%} to "
            f"{ppo['win_rate_high']:.1%}), decided by the {summary['decided_by']}."
        )
    reward_model = summary.get("reward_model", {})
    if reward_model.get("pair_accuracy") is not None:
        console.print(
            f"Reward model: {reward_model['pair_accuracy']:.1%} of {reward_model['n']} held-out pairs right "
            f"({reward_model['pair_accuracy_low']:.1%} to {reward_model['pair_accuracy_high']:.1%}); "
            f"'the longer answer wins' would get {reward_model['longer_wins_accuracy']:.1%}."
        )
    console.print(f"Summary: {root / 'pipelines' / summary['recipe'] / 'summary.json'}", soft_wrap=True)


def evaluation_table(evaluation: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of SFT and PPO on held-out prompts."""
    table = Table(title="held-out prompts", title_justify="left")
    table.add_column("")
    for model in evaluation:
        table.add_column(model.upper(), justify="right")
    for key, title in EVALUATION_ROWS.items():
        if all(key in numbers for numbers in evaluation.values()):
            table.add_row(title, *(f"{numbers[key]:.3f}" for numbers in evaluation.values()))
    return table
