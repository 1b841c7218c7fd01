"""Draws curves into one SVG or PNG: a panel for each metric, a colour for each run. Needs the `report` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ConfigError
from workbench.curves.record import PANELS, Curve

if TYPE_CHECKING:
    import altair

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


def write_picture(path: Path, curves: Sequence[Curve], labels: Sequence[str], steps: str) -> None:
    """Write the curves of all runs. Raises ConfigError for another ending than .svg and .png, or too many runs."""
    check_picture(path, labels)
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, labels, metrics, steps).save(path, ppi=192)  # an SVG has no use for ppi


def check_picture(path: Path, labels: Sequence[str]) -> None:
    """Raises ConfigError if the picture cannot be drawn."""
    if len(labels) > len(COLOURS):
        raise ConfigError(f"{len(labels)} runs are too many for {len(COLOURS)} colours; plot fewer at the same time")
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"cannot write {path}: its name must end in .svg or .png")
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a picture needs {error.name}, which is not installed: run pip install -e '.[report]' in triptych's folder"
            "; without --out the curves are shown in the terminal"
        ) from None


def draw(curves: Sequence[Curve], labels: Sequence[str], metrics: Sequence[str], steps: str) -> altair.HConcatChart:
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
            {"step": step, "value": value, "run": curve.label}
            for curve in curves
            if curve.metric == metric
            for step, value in curve.points
        ]
        panels.append(
            altair.Chart(altair.Data(values=rows), title=title)
            .mark_line(strokeWidth=2)
            .encode(
                x=altair.X("step:Q", title=steps, axis=whole_numbers),
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
