"""Makes the report of `evaluate-tasks`: numbers per task and their mean over tasks, as JSON and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipeline.terminal.console import screen
from workbench.tasks.data import Task
from workbench.tasks.evaluation import EXACT, METRICS, RANK, Evaluation, Row, TaskEvaluation
from workbench.tasks.metrics import Estimate, mean, mean_of_tasks, share


def as_json(evaluation: Evaluation, config: TaskEvaluation) -> dict[str, Any]:
    """Return the report. A difference is a model minus the first one, on the same rows. Unknown bounds are null."""
    tasks, means = [], []
    for kind, metrics in METRICS.items():
        places = [i for i, task in enumerate(evaluation.tasks) if bool(task.choices_from) == (kind == "rank")]
        for metric in metrics:
            values = {
                name: [[row.scores[metric] for row in rows[i]] for i in places]
                for name, rows in evaluation.rows.items()
            }
            for n, i in enumerate(places):
                estimates = numbers({name: [of_tasks[n]] for name, of_tasks in values.items()}, metric)
                tasks.append({**describe(evaluation.tasks[i]), "metric": metric, **estimates})
            if len(places) > 1:
                told = tasks[-len(places) :]
                means.append({"metric": metric, "tasks": len(places), **mean_baseline(told), **numbers(values, None)})
    return {
        "models": {
            reader.name: {
                "source": reader.source,
                "key": reader.key,
                "template": reader.template,
                "encoder_decoder": reader.encoder_decoder,
                "answers_ended": share_ended(evaluation.rows[reader.name]),
            }
            for reader in evaluation.readers
        },
        "shots": config.shots,
        "score": "mean" if config.per_token else "sum",
        "choices": config.choices,
        "seed": config.seed,
        "left_out": evaluation.left_out,
        "tasks": tasks,
        "means": means,
    }


def share_ended(rows: Sequence[Sequence[Row]]) -> float | None:
    """Return the share of a model's written answers that it ended itself; None if it wrote none."""
    ended = [row.detail["ended"] for part in rows for row in part if "ended" in row.detail]
    return sum(ended) / len(ended) if ended else None


def mean_baseline(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = [task["most_common_target"] for task in tasks if "most_common_target" in task]
    return {"most_common_target": sum(values) / len(values)} if values else {}


def describe(task: Task) -> dict[str, Any]:
    """Describe the task. If answers are ranked, add the accuracy of always answering the most common target."""
    told: dict[str, Any] = {"task": task.name, "rows": len(task.examples), "rows_in_data": task.n_rows}
    if task.choices_from:
        common = Counter(example.references[0] for example in task.examples).most_common(1)[0][1]
        counts = sorted({len(example.choices) for example in task.examples})
        told |= {
            "choices_from": task.choices_from,
            "n_choices": counts,
            "most_common_target": common / len(task.examples),
        }
        if task.choices_from == "targets":
            told["choices"] = list(task.examples[0].choices)
    return told


def numbers(values: Mapping[str, Sequence[Sequence[float]]], metric: str | None) -> dict[str, Any]:
    """Estimate each model and its difference from the first: for one task with a `metric`, or (None) over tasks."""
    first, *others = values
    one_task = share if metric in (RANK, EXACT) else mean
    return {
        "models": {
            name: bounds(one_task(of_tasks[0]) if metric else mean_of_tasks(of_tasks), lowest=0.0)
            for name, of_tasks in values.items()
        },
        "differences": {
            name: bounds(
                mean_of_tasks(
                    [
                        [a - b for a, b in zip(*pair, strict=True)]
                        for pair in zip(values[name], values[first], strict=True)
                    ]
                )
            )
            for name in others
        },
    }


def bounds(estimate: Estimate, lowest: float = -1.0) -> dict[str, float | None]:
    """Clip an estimate to the range a metric, or a difference of two, can have; NaN becomes None."""
    return {key: None if math.isnan(v) else min(max(v, lowest), 1.0) for key, v in estimate._asdict().items()}


def print_report(report: Mapping[str, Any]) -> None:
    """Print a line for each task and metric, then the means, then notes on how to read the table."""
    console = screen()
    names = list(report["models"])
    shots = {0: "zero-shot", 1: "one-shot"}.get(report["shots"], f"{report['shots']} shots")
    table = Table(title=f"tasks, {shots}, with 95 % intervals", title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("metric")
    table.add_column("commonest", justify="right")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for name in names[1:]:
        table.add_column(f"{name} - {names[0]}", justify="right", no_wrap=True)
    for row in report["tasks"]:
        table.add_row(row["task"], str(row["rows"]), row["metric"], *cells(row))
    table.add_section()
    for row in report["means"]:
        table.add_row(f"mean of {row['tasks']} tasks", "", row["metric"], *cells(row))
    console.print(table)
    for name, model in report["models"].items():
        ended = model["answers_ended"]
        told = "" if ended is None else f", ended {ended:.0%} of its written answers with EOS"
        console.print(f"{name}: {model['source']}, template {model['template']}{told}", soft_wrap=True, highlight=False)
    console.print("commonest: accuracy of always answering with the task's most common target.")
    taken = [row["task"] for row in report["tasks"] if row.get("choices_from") == "targets"]
    if taken:
        console.print(f"Tasks whose choices are their own distinct targets: {', '.join(taken)}.", soft_wrap=True)
    if report["left_out"]:
        told = ", ".join(f"{reason}: {count}" for reason, count in report["left_out"].items())
        console.print(f"Rows left out: {told}.", soft_wrap=True)


def cells(row: Mapping[str, Any]) -> list[str]:
    commonest = f"{row['most_common_target']:.3f}" if "most_common_target" in row else ""
    levels = [commonest] + [interval(found, "") for found in row["models"].values()]
    return levels + [interval(found, "+") for found in row["differences"].values()]


def interval(found: Mapping[str, float | None], sign: str) -> str:
    low, high = ("?" if bound is None else f"{bound:{sign}.3f}" for bound in (found["low"], found["high"]))
    return f"{found['value']:{sign}.3f} ({low} to {high})"
