"""`triptych curves MODEL ...`: show the curves of one or several runs, in the terminal or as a picture.

    triptych curves quickstart/ppo
    triptych curves quickstart/ppo quickstart_no_kl/ppo --out curves.svg

Without --out each curve is one line of blocks with its first and last, lowest and highest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import screen, visible
from stages.errors import ConfigError
from workbench.curves.record import PANELS, Curve, find_record, read_curves

BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
GAP = " "  # a value that is not finite
COLUMNS = 40  # most blocks in a line


def command(words: Sequence[str]) -> None:
    """Run `triptych curves`. Raises ConfigError, DataError or StoreError for mistakes that the user can fix."""
    parser = Arguments("curves", __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="MODEL", help="name, key, run directory, or metrics.jsonl")
    parser.add_root()
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write, .svg or .png")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show (default: the main ones)")
    parser.add_argument("--x", metavar="TEXT", help="title of a picture's x axis (default: the stage's step)")
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="names of the runs in a picture's legend")
    options = parser.parse_args(words)
    labels = options.labels or options.runs
    if len(labels) != len(options.runs) or len(set(labels)) != len(labels):
        raise ConfigError(
            f"{len(options.runs)} runs need as many different labels, found {', '.join(labels)}; set --labels"
        )
    if options.out is None:
        print_curves(read_all(options, labels))
        return
    from workbench.curves.picture import check_picture, write_picture

    check_picture(options.out, labels)
    curves = read_all(options, labels)
    ppo = any(curve.metric.startswith("objective/") for curve in curves)
    write_picture(options.out, curves, labels, options.x or ("PPO iteration" if ppo else "optimiser step"))
    print(visible(str(options.out)))


def read_all(options: argparse.Namespace, labels: Sequence[str]) -> list[Curve]:
    records = [find_record(run, options.root) for run in options.runs]
    pairs = zip(records, labels, strict=True)
    return [curve for path, label in pairs for curve in read_curves(path, label, options.metrics)]


def print_curves(curves: Sequence[Curve]) -> None:
    """A table with a line for each curve, the curves of a metric one below the other."""
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "run", "curve", "first", "last", "lowest", "highest", "steps"):
        table.add_column(column, justify="left" if column in ("metric", "run", "curve") else "right", no_wrap=True)
    for metric in dict.fromkeys(curve.metric for curve in curves):
        for curve in (each for each in curves if each.metric == metric):
            values = [value for _, value in curve.points if value is not None]
            numbers = (values[0], values[-1], min(values), max(values)) if values else ()
            shown = [f"{value:.4g}" for value in numbers] or ["-"] * 4
            steps = f"{curve.points[0][0]} to {curve.points[-1][0]}"
            blocks = sparkline([value for _, value in curve.points])
            title = PANELS[metric][0] if metric in PANELS else ""
            name = f"{metric} ({title})" if title else metric
            table.add_row(visible(name), visible(curve.label), blocks, *shown, steps)
    screen().print(table)


def sparkline(values: Sequence[float | None], columns: int = COLUMNS) -> str:
    """The values as blocks from low to high, at most `columns`: each is the mean of equally many values."""
    n = min(len(values), columns)
    parts = [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
    means = [sum(found) / len(found) if (found := [v for v in part if v is not None]) else None for part in parts]
    there = [mean for mean in means if mean is not None]
    low, high = min(there, default=0.0), max(there, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(GAP if mean is None else BLOCKS[round((mean - low) * scale)] for mean in means)
