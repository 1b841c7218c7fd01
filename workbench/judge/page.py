"""Shows the results of `triptych judge` as tables on the terminal and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from data_schema.errors import printable
from pipeline.terminal.console import screen

TABLES = {
    "by_subset": "subset",
    "by_source": "source",
    "by_labeler": "labeler",
    "by_rank_distance": "ranks apart",
    "by_margin": "stated margin",
}
WIDTH, HEIGHT, MARGIN = 400, 280, 46  # of a plot, in pixels; the axis labels are in the margin
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"  # distinguishable with colour blindness (Okabe, Ito)
STYLE = """body{font:15px/1.5 sans-serif;max-width:54em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.6em}td,th{padding:.15em .9em .15em 0;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #888;font-weight:normal}
svg{max-width:100%;margin-right:1em}p.note{color:#555}"""


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def interval(row: Mapping[str, Any]) -> str:
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"


def headline(judged: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a judgement's main numbers as (label, value)."""
    gain = judged["gain_over_length"]
    span = {"low": judged["pair_accuracy_low"], "high": judged["pair_accuracy_high"]}
    rows = [
        ("pairs (prompts)", f"{judged['n']} ({judged['n_prompts']})"),
        ("accuracy (95 % interval)", f"{percent(judged['pair_accuracy'])} ({interval(span)})"),
        ('accuracy of "the longer answer wins"', percent(judged["longer_wins_accuracy"])),
        ('accuracy of "the shorter answer wins"', percent(judged["shorter_wins_accuracy"])),
        ("gain over the better of these rules", f"{100 * gain['gain']:+.1f} points ({interval(gain)})"),
    ]
    for name, title in (
        ("accuracy_when_the_longer_is_better", "accuracy where the longer is better"),
        ("accuracy_when_the_shorter_is_better", "accuracy where the shorter is better"),
        ("accuracy_when_equally_long", "accuracy where both are equally long"),
    ):
        if judged[name]:
            rows.append((title, f"{percent(judged[name]['rate'])} ({interval(judged[name])}), n {judged[name]['n']}"))
    error, chance = judged["calibration_error"], judged["calibration_error_by_chance"]
    rows += [
        ("calibration error (expected by chance)", f"{error:.3f} ({chance:.3f})"),
        ("best-fitting temperature", number(judged["temperature"])),
        ("calibration error at that temperature", number(judged["calibration_error_at_temperature"])),
        ("log loss, nats (at that temperature)", f"{judged['log_loss']:.3f} ({judged['log_loss_at_temperature']:.3f})"),
        ("correlation of score and length", number(judged["length_correlation"])),
        ("correlation of score and length within prompts", number(judged["length_correlation_within_prompts"])),
    ]
    if "gold_correlation" in judged:
        rows.append(("correlation of score and gold score", number(judged["gold_correlation"])))
    return rows


def agreement_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("pairs with several votes", f"{found['items']}, by {found['labelers']} labelers"),
        ("agreement (share of pairs of votes)", percent(found["raw_agreement"])),
        ("Krippendorff's alpha, nominal", number(found["krippendorff_alpha"])),
        ("Krippendorff's alpha, ordinal", number(found["krippendorff_alpha_ordinal"])),
        ("Fleiss' kappa (same number of votes only)", number(found["fleiss_kappa"])),
    ]


def print_judgement(result: Mapping[str, Any], page: Path) -> None:
    """Print the numbers of the page as tables on the terminal."""
    console = screen()
    for title, rows in sections(result):
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for title, table_rows in split_tables(result):
        table = Table(title=f"by {title}", title_justify="left")
        for column in (title, "accuracy", "95 % interval", "pairs", "longer wins"):
            table.add_column(column, justify="left" if column == title else "right", overflow="fold")
        for judged in table_rows:
            table.add_row(*cells(judged))
        console.print(table)
    if "mean_over_subsets" in result:
        console.print(f"Mean over subsets: {percent(result['mean_over_subsets'])}")
    console.print(f"Page: {page}", soft_wrap=True)


def sections(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    found = [(f"{result['model']} on {', '.join(result['data']['sources'])}", headline(result))]
    if result.get("fresh", {}).get("n"):
        found.append((f"{result['model']} on fresh answers of {result['fresh']['policy']}", headline(result["fresh"])))
    if "agreement" in result:
        found.append(("agreement between labelers", agreement_rows(result["agreement"])))
    return found


def split_tables(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(title, result[name]) for name, title in TABLES.items() if len(result.get(name, ())) > 1]


def cells(row: Mapping[str, Any]) -> list[str]:
    return [row["name"], percent(row["rate"]), interval(row), str(row["n"]), percent(row["longer_wins"])]


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write one HTML file that contains its plots."""
    body = [f"<h1>Reward model {escape(result['model'])}</h1>"]
    dropped = {**result["data"].get("dropped", {}), **result["left_out"]}
    told = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
    body.append(
        f"<p>Checkpoint <code>{escape(result['fingerprint'][:20])}</code>. Comparisons: "
        f"{escape(', '.join(result['data']['sources']))}; left out: {escape(told)}. Intervals treat prompts, "
        "not pairs, as independent. A pair with equal scores counts as wrong.</p>"
    )
    for title, rows in sections(result):
        body += [f"<h2>{escape(title)}</h2>", html_table(None, rows)]
    body += [
        "<h2>Calibration and length</h2>",
        reliability_plot(result["reliability"]),
        length_plot(result["score_by_length"]),
        '<p class="note">Left: how often the answer with the higher score is the preferred one, against the '
        "model's probability of that, sigmoid(score difference). A calibrated model is on the dashed line, an "
        "overconfident one below it. Larger circles: more pairs. Right: mean score by length, in ten groups.</p>",
    ]
    for title, table_rows in split_tables(result):
        header = [title, "accuracy", "95 % interval", "pairs", "longer wins"]
        body += [f"<h2>By {escape(title)}</h2>", html_table(header, [cells(row) for row in table_rows])]
    if "mean_over_subsets" in result:
        body.append(f"<p>Mean over subsets: {percent(result['mean_over_subsets'])}</p>")
    page = f"<title>{escape(result['model'])}</title><style>{STYLE}</style>\n" + "\n".join(body)
    text = f'<!doctype html><html lang="en"><meta charset="utf-8">{page}</html>\n'
    path.write_text(printable(text), encoding="utf-8")


def html_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>" if header else ""
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{head}{''.join(lines)}</table>"


class Axis(NamedTuple):
    low: float
    high: float

    def place(self, value: float, size: float) -> float:
        """Map low .. high to 0 .. size."""
        return size * (value - self.low) / (self.high - self.low)


def reliability_plot(bins: Sequence[Mapping[str, float]]) -> str:
    both = Axis(0.0, 1.0) if any(row["accuracy"] < 0.4 for row in bins) else Axis(0.4, 1.0)
    x = Axis(0.5, 1.0)
    most = max(row["n"] for row in bins)
    shapes = [line([(0.5, 0.5), (1.0, 1.0)], x, both, GREY, "4 4")]
    shapes.append(line([(row["confidence"], row["accuracy"]) for row in bins], x, both, BLUE))
    for row in bins:
        at = position(row["confidence"], row["accuracy"], x, both)
        radius = 2 + 8 * (row["n"] / most) ** 0.5
        title = f"{row['n']} pairs: confidence {row['confidence']:.3f}, accuracy {row['accuracy']:.3f}"
        shapes.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.1f}" fill="{BLUE}" fill-opacity=".6">'
            f"<title>{title}</title></circle>"
        )
    return plot(shapes, x, both, "probability given by the model", "share of pairs that are right")


def length_plot(tenths: Sequence[Mapping[str, float]]) -> str:
    lengths, scores = [row["length"] for row in tenths], [row["score"] for row in tenths]
    x = Axis(0.0, max(lengths) * 1.05)
    room = 0.1 * (max(scores) - min(scores)) or 1.0
    y = Axis(min(scores) - room, max(scores) + room)
    return plot([line(list(zip(lengths, scores, strict=True)), x, y, ORANGE)], x, y, "tokens per answer", "mean score")


def position(x: float, y: float, x_axis: Axis, y_axis: Axis) -> tuple[float, float]:
    return MARGIN + x_axis.place(x, WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y_axis.place(y, HEIGHT - 2 * MARGIN)


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, colour: str, dashes: str = "none") -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (position(*point, x, y) for point in points))
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'


def plot(shapes: Sequence[str], x: Axis, y: Axis, x_title: str, y_title: str) -> str:
    """Return the shapes with two labelled axes as an SVG."""
    right, bottom = WIDTH - MARGIN, HEIGHT - MARGIN
    marks = [f'<path d="M{MARGIN},{MARGIN}V{bottom}H{right}" fill="none" stroke="{GREY}"/>']
    for step in range(6):
        a, b = (axis.low + (axis.high - axis.low) * step / 5 for axis in (x, y))
        (across, _), (_, up) = position(a, y.low, x, y), position(x.low, b, x, y)
        marks.append(f'<text x="{across:.0f}" y="{bottom + 16}" text-anchor="middle">{a:.3g}</text>')
        marks.append(f'<text x="{MARGIN - 6}" y="{up + 4:.0f}" text-anchor="end">{b:.3g}</text>')
    marks.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x_title}</text>')
    marks.append(f'<text x="{MARGIN}" y="{MARGIN - 14}">{y_title}</text>')
    font = 'font-family="sans-serif" font-size="11" fill="#222"'
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><g {font}>{"".join([*marks, *shapes])}</g></svg>'
