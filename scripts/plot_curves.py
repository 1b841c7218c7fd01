"""Plot PPO's curves from the metrics.jsonl of one or several runs, side by side, into one SVG or PNG.

    python scripts/plot_curves.py quickstart/ppo quickstart_no_kl/ppo --out docs/images/quickstart.svg

A run is a checkpoint's name or key in ROOT/store (its metrics are in ROOT/runs/KEY/metrics.jsonl), or a path to a
metrics.jsonl. Needs the `report` extra: pip install "triptych[report]".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/, whose evaluate.py would shadow a library

from checkpoint_store import CheckpointStore
from data_schema import DataError

if TYPE_CHECKING:
    import altair

RECORD = "metrics.jsonl"
WIDTH, HEIGHT = 860, 170  # of all panels together, in pixels: a README is about 900 wide
GAP = 62  # pixels between panels: room for the next panel's axis
COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
]  # distinguishable with colour blindness (Okabe, Ito)

# metric: (title of its panel, unit of its axis)
PANELS = {
    "objective/score": ("Learned reward", "score of the reward model"),
    "monitor/gold": ("Gold score", "score of the judge"),
    "monitor/correctness": ("Correctness", "share of each task solved"),
    "objective/kl": ("Distance from SFT", "KL, nats per answer"),
}


class Curve(NamedTuple):
    """One metric of one run."""

    label: str
    metric: str
    points: list[tuple[int, float | None]]  # (iteration, value); None if the value was not finite


def find_record(run: str, root: Path) -> Path:
    """Find the metrics.jsonl of a run. Raises StoreError for an unknown name, DataError if the file is missing."""
    path = Path(run)
    if path.suffix != ".jsonl":
        path = root / "runs" / CheckpointStore(root / "store").resolve(run) / RECORD
    if not path.is_file():
        raise DataError(
            f"{run} has no metrics at {path}; give the path of its {RECORD}, or run its stage again with --force"
        )
    return path


def read_curves(path: Path, label: str, metrics: Sequence[str]) -> list[Curve]:
    """Read the curves of `metrics`, in that order. Raises DataError for a missing metric, naming those in the file."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break  # a killed run may leave an incomplete last line
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not JSON ({error.msg}); give a {RECORD}") from None
    there = dict.fromkeys(name for row in rows for name in row if name not in ("step", "time"))
    if missing := [name for name in metrics if name not in there]:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}; choose with --metrics among: "
            + (", ".join(there) or "none, the file is empty")
        )
    return [Curve(label, name, [(row["step"], finite(row[name])) for row in rows if name in row]) for name in metrics]


def finite(value: Any) -> float | None:
    """The number, or None, a gap in the curve, for values that are written as "nan", "inf" and "-inf"."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def draw(
    curves: Sequence[Curve], labels: Sequence[str], metrics: Sequence[str], steps: str = "PPO iteration"
) -> altair.HConcatChart:
    """One panel for each metric, one colour for each run."""
    import altair

    colour = altair.Color("run:N", sort=list(labels), scale=altair.Scale(domain=list(labels), range=COLOURS))
    if len(labels) > 1:
        colour = colour.legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3, labelLimit=0)
    else:
        colour = colour.legend(None)
    whole_numbers = altair.Axis(tickCount=4, format="d", tickMinStep=1)
    # Padding, because a label at the top of an axis would push its panel's title above the others.
    roomy = altair.Scale(zero=False, nice=False, padding=8)
    panels = []
    for metric in metrics:
        title, unit = PANELS.get(metric, (metric, "value"))
        rows = [
            {"iteration": step, "value": value, "run": curve.label}
            for curve in curves
            if curve.metric == metric
            for step, value in curve.points
        ]
        panels.append(
            altair.Chart(altair.Data(values=rows), title=title)
            .mark_line(strokeWidth=2)
            .encode(
                x=altair.X("iteration:Q", title=steps, axis=whole_numbers),
                y=altair.Y("value:Q", title=unit, scale=roomy, axis=altair.Axis(tickCount=5)),
                color=colour,
            )
            .properties(width=(WIDTH - GAP * len(metrics)) // len(metrics), height=HEIGHT)
        )
    return (
        altair.hconcat(*panels, spacing=GAP, bounds="flush", background="white", padding=10)
        .configure(font="sans-serif")
        .configure_view(stroke=None)
        .configure_title(fontSize=13, anchor="start", frame="group", offset=8)
        .configure_axis(gridColor="#e8e8e8", domainColor="#888888", tickColor="#888888", titleFontWeight="normal")
        .configure_legend(labelFontSize=12, symbolSize=300, offset=16)
    )


def plot(options: argparse.Namespace) -> None:
    """Read, draw and write. Raises DataError or StoreError for mistakes that the user can fix."""
    labels = options.labels or options.runs
    if len(labels) != len(options.runs) or len(set(labels)) != len(labels):
        raise DataError(
            f"{len(options.runs)} runs need as many different labels, found {', '.join(labels)}; set --labels"
        )
    if len(labels) > len(COLOURS):
        raise DataError(f"{len(labels)} runs are too many for {len(COLOURS)} colours; plot fewer at the same time")
    if options.out.suffix not in (".svg", ".png"):
        raise DataError(f"cannot write {options.out}: its name must end in .svg or .png")
    records = [find_record(run, options.root) for run in options.runs]
    pairs = zip(records, labels, strict=True)
    curves = [curve for path, label in pairs for curve in read_curves(path, label, options.metrics)]
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise DataError(f'plots need {error.name}, which is not installed: pip install "triptych[report]"') from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, labels, options.metrics, options.x).save(options.out, ppi=192)  # an SVG has no use for ppi
    print(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="plot_curves.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="checkpoint's name or key, or path to a metrics.jsonl")
    parser.add_argument(
        "--root", type=Path, default=Path("out"), help="folder with checkpoints and runs (default: out)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write, .svg or .png")
    parser.add_argument(
        "--metrics", nargs="+", default=list(PANELS), metavar="NAME", help=f"panels (default: {' '.join(PANELS)})"
    )
    parser.add_argument("--x", default="PPO iteration", metavar="TEXT", help="title of the x axis (%(default)s)")
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="names of the runs in the legend")
    options = parser.parse_args(arguments)

    from pipeline.__main__ import guarded

    return guarded(lambda: plot(options))


if __name__ == "__main__":
    sys.exit(main())
