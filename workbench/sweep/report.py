"""Makes a sweep's table: one row per setting, mean and spread over seeds, best row by a comparable metric."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from pipeline.plan import StagePlan
from pipeline.terminal.console import screen
from stages.sft.held_out_losses import RowLoss, bits_per_byte, compare_losses
from stages.statistics import mean_with_standard_error


class Result(NamedTuple):
    """The result of one setting with one seed."""

    settings: Mapping[str, str]
    seed: int
    key: str  # key of the compared stage's checkpoint
    error: str | None
    metrics: Mapping[str, float]  # of the compared stage
    losses: Mapping[str, RowLoss]  # of the SFT stage, by demonstration
    scored_by: str  # the models and weights that make up the compared stage's reward


class Column(NamedTuple):
    metric: str
    title: str
    better: int = 0  # 1: higher is better, -1: lower is better, 0: neither
    is_reward: bool = False  # comparable only between settings with the same reward
    digits: int = 3


# stage -> columns; the first column present with a direction (`better`) decides which row is best
COLUMNS = {
    "sft": (
        Column("bits_per_byte", "bits per byte", -1),
        Column("held_out_loss", "nats per token"),
        Column("held_out_tokens", "answer tokens", digits=0),
        Column("rows", "common rows", digits=0),
        Column("too_long", "too long", digits=0),
    ),
    "comparisons": (Column("comparisons", "comparisons", digits=0), Column("pairs", "pairs", digits=0)),
    "reward_model": (
        Column("pair_accuracy", "pair accuracy", 1),
        Column("longer_wins_accuracy", "longer wins"),
        Column("n", "pairs", digits=0),
        Column("too_long", "too long", digits=0),
    ),
    "ppo": (
        Column("monitor/gold", "gold score", 1),
        Column("objective/score", "score", 1, is_reward=True),
        Column("objective/kl", "KL (nats)"),
        Column("objective/length", "length", digits=1),
    ),
    "evaluate": (
        Column("models.ppo.gold_mean", "gold score", 1),
        Column("models.sft.gold_mean", "SFT gold score"),
        Column("models.ppo.win_rate", "win rate over SFT"),
        Column("models.ppo.reward_mean", "reward", 1, is_reward=True),
        Column("models.ppo.kl", "KL (nats)"),
        Column("models.ppo.length_mean", "length", digits=1),
    ),
}
SECONDS = Column("seconds", "seconds", digits=0)


def flat_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"models": {"ppo": {"kl": 1}}} -> {"models.ppo.kl": 1.0}; other values are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def summarise_sweep(stage: str, results: Sequence[Result]) -> dict[str, Any]:
    """Return the content of summary.json: one row per setting, the best row and the metric for it, and remarks."""
    remarks: list[str] = []
    results = on_common_rows(stage, results, remarks)
    settings = [dict(pairs) for pairs in dict.fromkeys(tuple(result.settings.items()) for result in results)]
    groups = [[result for result in results if result.settings == setting] for setting in settings]
    rows = []
    for setting, group in zip(settings, groups, strict=True):
        done = [result for result in group if result.error is None]
        names = dict.fromkeys(name for result in done for name in result.metrics)
        values = {name: [r.metrics[name] for r in done if name in r.metrics] for name in names}
        runs = {str(r.seed): {"key": r.key, **({"error": r.error} if r.error else {})} for r in group}
        rows.append({"settings": setting, "runs": runs, "metrics": {n: spread(v) for n, v in values.items()}})
    decided_by, best = find_best(stage, groups, rows, remarks)
    if best is not None and stage == "sft":
        for group, row in zip(groups, rows, strict=True):
            row["above_best"] = above_best(group, groups[best])
    return {"stage": stage, "decided_by": decided_by, "best": best, "rows": rows, "remarks": remarks}


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean and sample standard deviation over seeds; the deviation is None for a single seed."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "n": len(values)}


def on_common_rows(stage: str, results: Sequence[Result], remarks: list[str]) -> list[Result]:
    """For SFT: keep only the losses of demonstrations that all settings of a seed were measured on. Adds
    `bits_per_byte` over them and their number, `rows`, to each result's metrics."""
    if stage != "sft":
        return list(results)
    done = [result for result in results if result.error is None]
    if not all(result.losses for result in done):
        remarks.append(
            "Nothing is compared: some runs have no loss per row (sft.held_out is 0, or an encoder-decoder)."
        )
        return list(results)
    found = []
    for result in results:
        if result.error is None:
            peers = [other.losses for other in done if other.seed == result.seed]
            common = sorted(set.intersection(*(set(losses) for losses in peers)))
            losses = {name: result.losses[name] for name in common}
            metrics = {**result.metrics, "rows": float(len(common))}
            if common:
                metrics["bits_per_byte"] = bits_per_byte(list(losses.values()))
            result = result._replace(losses=losses, metrics=metrics)
        found.append(result)
    if any(len(before.losses) > len(after.losses) for before, after in zip(results, found, strict=True)):
        remarks.append(
            "Held-out rows that a setting drops (too long, or other data) are left out of bits per byte, but not of "
            "nats per token. The training rows differ as well: raise sft.max_length until no row is too long."
        )
    return found


def find_best(
    stage: str, groups: Sequence[Sequence[Result]], rows: Sequence[Mapping[str, Any]], remarks: list[str]
) -> tuple[str | None, int | None]:
    """Return (the deciding metric, the index of the best row). A row with a failed run is never the best."""
    whole = [i for i, group in enumerate(groups) if all(result.error is None for result in group)]
    for column in COLUMNS[stage]:
        if not column.better or not whole or not all(column.metric in rows[i]["metrics"] for i in whole):
            continue
        if column.is_reward and not same_rewards(groups):
            remarks.append(
                f"Settings differ in their reward models or weights, so their {column.title}s do not compare."
            )
            continue
        return column.metric, max(whole, key=lambda i: column.better * rows[i]["metrics"][column.metric]["mean"])
    return None, None


def same_rewards(groups: Sequence[Sequence[Result]]) -> bool:
    done = [result for group in groups for result in group if result.error is None]
    return len({(r.seed, r.scored_by) for r in done}) == len({r.seed for r in done})


def above_best(group: Sequence[Result], best: Sequence[Result]) -> dict[str, float | None] | None:
    """Return the bits per byte above the best setting's, paired by seed. The standard error is over seeds; with only
    one seed it is over demonstrations and does not include the variation between seeds."""
    others = {result.seed: result for result in best}
    pairs = [(r.losses, others[r.seed].losses) for r in group if r.error is None and r.seed in others]
    differences = [compare_losses(losses, best_losses) for losses, best_losses in pairs if losses]
    if not differences:
        return None
    if len(differences) == 1:
        mean, error = differences[0]
    else:
        mean, error, _ = mean_with_standard_error([difference.bits_per_byte for difference in differences])
    return {"mean": mean, "standard_error": None if math.isnan(error) else error}


def table_of(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and cells as text."""
    rows = summary["rows"]
    keys = list(rows[0]["settings"])
    short = [key.rpartition(".")[2] for key in keys]
    short = short if len(set(short)) == len(short) else keys
    present = {name for row in rows for name in row["metrics"]}
    columns = [column for column in (*COLUMNS[summary["stage"]], SECONDS) if column.metric in present]
    paired = any(row.get("above_best") for row in rows)
    failed = any("error" in run for row in rows for run in row["runs"].values())
    header = [*short, *(column.title for column in columns)]
    if paired:
        header.insert(len(short) + 1, "above the best")
    if failed:
        header.append("failed")
    cells = []
    for number, row in enumerate(rows):
        line = [*row["settings"].values()]
        for column in columns:
            mark = "*" if number == summary["best"] and column.metric == summary["decided_by"] else ""
            line.append(number_text(row["metrics"].get(column.metric), column.digits) + mark)
        if paired:
            line.insert(len(short) + 1, "" if number == summary["best"] else difference_text(row.get("above_best")))
        if failed:
            bad = sum("error" in run for run in row["runs"].values())
            line.append(f"{bad} of {len(row['runs'])}" if bad else "")
        cells.append(line)
    return header, cells


def number_text(value: Mapping[str, float | None] | None, digits: int) -> str:
    if value is None:
        return "-"
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


def difference_text(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return "-"
    error = "" if value["standard_error"] is None else f" ± {value['standard_error']:.3f}"
    return f"{value['mean']:+.3f}{error}"


def legend(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences that explain the table's numbers."""
    n_seeds = max(len(row["runs"]) for row in summary["rows"])
    lines = [f"Mean ± standard deviation over {n_seeds} seeds."] if n_seeds > 1 else ["One seed."]
    if summary["decided_by"]:
        lines[0] += " * marks the best."
    if any(row.get("above_best") for row in summary["rows"]):
        unit = "seeds" if n_seeds > 1 else "demonstrations, not over seeds"
        lines.append(
            "Bits per byte: code length of the held-out answers and their end, divided by their UTF-8 bytes, on rows "
            "that all settings share. Nats per token are comparable only if the tokens are the same. "
            f"Above the best: paired difference from the best setting, ± standard error over {unit}."
        )
    return lines + list(summary["remarks"])


def write_sweep(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write summary.json and table.md; each is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    header, cells = table_of(summary)
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in line] for line in cells)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    page = f"# {summary['sweep']}\n\nStage {summary['stage']}.\n\n{table}\n" + "\n\n".join(legend(summary)) + "\n"
    for name, text in (("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n"), ("table.md", page)):
        temporary = folder / f".{name}-{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return folder


def print_sweep(summary: Mapping[str, Any], folder: Path) -> None:
    console = screen()
    header, cells = table_of(summary)
    table = Table(title=f"{summary['sweep']}: {summary['stage']}", title_justify="left")
    for number, title in enumerate(header):
        settings = number < len(summary["rows"][0]["settings"])
        table.add_column(title, justify="left" if settings else "right", overflow="fold")
    for line in cells:
        table.add_row(*line)
    console.print(table)
    for text in [*legend(summary), f"Summary: {folder / 'summary.json'}"]:
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def print_sweep_plan(name: str, stage: str, cells: Sequence[tuple[str, Sequence[StagePlan]]]) -> None:
    """Print what each cell would run; "shared" is a stage that an earlier cell runs."""
    table = Table(title=f"{name}: dry run up to {stage}", title_justify="left")
    table.add_column("run", overflow="fold")
    for plan in cells[0][1]:
        table.add_column(plan.stage)
    seen: set[str] = set()
    for title, plans in cells:
        would = ["published" if plan.exists else "shared" if plan.key in seen else "run" for plan in plans]
        seen.update(plan.key for plan in plans)
        table.add_row(title, *would)
    screen().print(table)
