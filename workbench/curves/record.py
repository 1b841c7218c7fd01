"""Finds a run's metrics.jsonl and reads curves from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_store import Root, local_root, open_store
from data_schema import DataError

RECORD = "metrics.jsonl"
# metric: (title of its panel, unit of its axis)
PANELS = {
    "sft/loss": ("SFT loss", "nats per token"),
    "sft/mean_token_accuracy": ("Token accuracy", "share of tokens"),
    "reward_model/loss": ("Ranking loss", "nats per pair"),
    "reward_model/pair_accuracy": ("Pair accuracy", "share of the batch's pairs"),
    "objective/score": ("Learned reward", "score of the reward model"),
    "monitor/gold": ("Gold score", "score of the judge"),
    "monitor/correctness": ("Correctness", "share of each task solved"),
    "objective/kl": ("Distance from SFT", "KL, nats per answer"),
}


class Curve(NamedTuple):
    """One metric of one run."""

    label: str
    metric: str
    points: list[tuple[int, float | None]]  # (step, value); None if the value was not finite


def find_record(run: str, root: Root) -> Path:
    """Find the metrics.jsonl of a checkpoint's name or key, or a run directory. Raises StoreError for an unknown name,
    DataError if the file is missing."""
    path = Path(run)
    if path.suffix != ".jsonl":
        folder = path if (path / RECORD).is_file() else local_root(root) / "runs" / open_store(root).resolve(run)
        path = folder / RECORD
    if not path.is_file():
        raise DataError(
            f"{run} has no metrics at {path}; give the path of its {RECORD}, or run its stage again with --force"
        )
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an incomplete last one. Raises DataError, naming the line, for others."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # a killed run may leave an incomplete last line
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number} is not JSON; give a {RECORD}") from None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise DataError(f"{path}:{number} is not a line of metrics with a step; give a {RECORD}")
        rows.append(row)
    return rows


def read_curves(path: Path, label: str, metrics: Sequence[str] | None) -> list[Curve]:
    """Read the curves of `metrics`, in that order; None: of those in PANELS, or of all if there is none of these.

    Raises DataError for a missing metric, naming those in the file."""
    rows = read_rows(path)
    there = dict.fromkeys(name for row in rows for name in row if name not in ("step", "time"))
    if metrics is None:
        metrics = [name for name in PANELS if name in there] or list(there)
    if missing := [name for name in metrics if name not in there]:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}; choose with --metrics among: "
            + (", ".join(there) or "none, the file is empty")
        )
    return [Curve(label, name, [(row["step"], finite(row[name])) for row in rows if name in row]) for name in metrics]


def finite(value: Any) -> float | None:
    """The number, or None, a gap in the curve, for values that are written as "nan", "inf" and "-inf"."""
    return float(value) if type(value) in (int, float) and abs(value) < math.inf else None
