"""Shows the report of `triptych data inspect` on the terminal and as one self-contained HTML file.

Rows are shown token by token, and tokens that the loss is on are marked. The texts are not trusted: control characters
never reach the terminal, and everything on the HTML page is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_schema import Demonstration, Document, Message, Record
from data_schema.errors import printable
from stages.data_checks.findings import SEVERITIES
from stages.data_checks.inspection import Report, Tokens
from stages.data_checks.lengths import conversations, histogram, learned, quantiles
from stages.data_checks.tokenizer_checks import encode_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
TRAINED, EOS, READ = "black on green", "bold white on blue", "dim"
BAR = 40  # characters of the longest bar
SHOWN_TOKENS = 600  # shown of a row; the number of further tokens is given


class Piece(NamedTuple):
    text: str
    trained: bool
    token: int | None  # token id; None without a tokenizer
    is_eos: bool


class View(NamedTuple):
    title: str
    pieces: list[Piece]
    left_out: int  # number of pieces not shown


def views(records: Iterable[Record], tokens: Tokens | None) -> Iterator[View]:
    """Yield the rows as a model would read them: one view per row, or one per response of a comparison."""
    for record in records:
        if isinstance(record, Document):
            yield _view(record.id, _document_pieces(record, tokens))
            continue
        talks = conversations(record)
        for number, talk in enumerate(talks, start=1):
            title = record.id if len(talks) == 1 else f"{record.id}, response {number} of {len(talks)}"
            if tokens is None:
                pieces = [
                    Piece(f"{message.role}: {message.content}\n", _is_learned(record, talk, i), None, False)
                    for i, message in enumerate(talk)
                ]
            else:
                [encoded] = encode_rows(tokens.tokenizer, [talk])
                if isinstance(encoded, str):
                    pieces = [Piece(f"cannot be encoded: {encoded}", False, None, False)]
                else:
                    pieces = _token_pieces(tokens.tokenizer, encoded.ids, learned(encoded, type(record), talk))
            yield _view(title, pieces)


def print_report(report: Report, rows: Sequence[View], console: Console) -> None:
    """Print the report, worst findings first, then the rows."""
    console.print(Text(", ".join(map(printable, report.sources)), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for name, value in facts(report):
        table.add_row(name, printable(value))
    console.print(table)
    bars = histogram(report.lengths.whole)
    most = max((count for *_, count in bars), default=1)
    console.print(f"\n{report.lengths.unit} per row", style="bold")
    for low, high, count in bars:
        label = f"{low}-{high}" if low != high else f"{low}"
        beyond = report.max_length is not None and high > report.max_length
        console.print(
            Text.assemble(f"{label:>15} {count:>8} ", ("█" * -(-count * BAR // most), "yellow" if beyond else "green"))
        )
    console.print()
    for finding in report.findings:
        line = Text.assemble(
            (finding.severity, COLOURS[finding.severity]), f" [{finding.check}] {printable(finding.text)}"
        )
        if finding.cure:
            line.append(f"; {printable(finding.cure)}")
        if finding.examples:
            line.append(f" ({printable(', '.join(finding.examples))})", "dim")
        console.print(line, soft_wrap=True)
    console.print(Text(verdict(report), style="bold"))
    for view in rows:
        console.print(Text(f"\n{printable(view.title)}", style="bold"), soft_wrap=True)
        console.print(_terminal_row(view, console.is_terminal and not console.no_color), soft_wrap=True)
    if rows:
        console.print(Text("\n" + LEGEND, style="dim"), soft_wrap=True)


LEGEND = (
    "Green: tokens that are learned (in a comparison: compared). Blue: learned EOS. Without colours: ⟦learned⟧, a|b."
)


def facts(report: Report) -> list[tuple[str, str]]:
    """Return the report's figures as (name, value), for both outputs."""
    dropped = ", ".join(f"{reason}: {count}" for reason, count in report.dropped.items())
    rows = [
        ("kind", f"{report.kind}, format {report.source_format}"),
        ("rows", f"{report.records} used, {sum(report.dropped.values())} dropped{f' ({dropped})' if dropped else ''}"),
        ("duplicates", f"{report.duplicates} exact, {report.near_duplicates} near, {report.same_prompt} same prompt"),
        ("scripts", ", ".join(f"{name} {count}" for name, count in report.scripts.items())),
        ("tokenizer", f"{report.tokenizer}, template {report.template}" if report.tokenizer else "none"),
    ]
    for name, lengths in (("row lengths", report.lengths.whole), ("answers", report.lengths.answers)):
        if numbers := quantiles(lengths):
            shown = ", ".join(f"{key} {numbers[key]:,}" for key in ("min", "p50", "p95", "max", "mean", "total"))
            rows.append((name, f"{shown} {report.lengths.unit}"))
    if report.max_length is not None:
        rows.append(("too long", f"{report.too_long} rows over {report.max_length} {report.lengths.unit}"))
    if report.against is not None:
        counts = report.against
        rows.append(
            ("other set", f"{counts['records']} prompts: {counts['shared']} shared, {counts['nearly_shared']} nearly")
        )
    return rows


def verdict(report: Report) -> str:
    counts = [(name, sum(finding.severity == name for finding in report.findings)) for name in SEVERITIES]
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts)


def _is_learned(record: Record, talk: Sequence[Message], turn: int) -> bool:
    """Whether the loss is on this turn; as `learned`, but for a whole turn."""
    here = talk[turn].learned if isinstance(record, Demonstration) else turn == len(talk) - 1
    return talk[turn].role == "assistant" and here


def _view(title: str, pieces: list[Piece]) -> View:
    return View(title, pieces[:SHOWN_TOKENS], max(0, len(pieces) - SHOWN_TOKENS))


def _document_pieces(record: Document, tokens: Tokens | None) -> list[Piece]:
    if tokens is None:
        return [Piece(record.text, True, None, False)]
    ids = tokens.tokenizer(record.text, add_special_tokens=False, verbose=False)["input_ids"]
    ids += [] if tokens.tokenizer.eos_token_id is None else [tokens.tokenizer.eos_token_id]
    return _token_pieces(tokens.tokenizer, ids, [True] * len(ids))


def _token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], trained: Sequence[bool]) -> list[Piece]:
    """Pair each token with the characters it completes: a byte-level token may contain only part of one."""
    from policy.special_tokens import stop_ids

    pieces: list[Piece] = []
    stops = stop_ids(tokenizer)
    start = 0  # first token whose characters are not shown yet
    for i, (token, inside) in enumerate(zip(ids, trained, strict=True)):
        text = tokenizer.decode(ids[start : i + 1])
        waits = text.endswith("\ufffd") and i + 1 < len(ids) and i - start < 3
        pieces.append(Piece("" if waits else text, inside, token, token in stops))
        start = start if waits else i + 1
    return pieces


def _terminal_row(view: View, colours: bool) -> Text:
    row = Text()
    inside = False
    for piece in view.pieces:
        text = printable(piece.text)
        if not colours:
            between = "|" if row and piece.token is not None else ""
            row.append(
                ("⟦" if piece.trained and not inside else "⟧" if inside and not piece.trained else between) + text
            )
        elif piece.is_eos and piece.trained:
            row.append(text, EOS)
        else:
            row.append(
                text.replace("\n", "⏎\n") if piece.token is not None else text, TRAINED if piece.trained else READ
            )
        inside = piece.trained
    if not colours and inside:
        row.append("⟧")
    if view.left_out:
        row.append(f" ... {view.left_out} more")
    return row


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
td,th{padding:.1em .8em .1em 0;vertical-align:top;text-align:left}pre{white-space:pre-wrap;border:1px solid #ccc;
padding:.6em;overflow-wrap:anywhere}pre span{border-right:1px solid #0003}.t{background:#b7e4b0}.e{background:#9cc4f0}
.r{color:#777}.bar{background:#6aa84f;height:.9em;display:inline-block}.error{color:#b00;font-weight:bold}
.warning{color:#960;font-weight:bold}.note{color:#067;font-weight:bold}.id{color:#777}"""


def html_page(report: Report, rows: Sequence[View]) -> str:
    """Return the report as one page without scripts or external files; hovering over a token shows its id."""

    def cells(values: Iterable[Any], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(value)}</{tag}>" for value in values) + "</tr>"

    title = escaped(", ".join(report.sources))
    bars = histogram(report.lengths.whole)
    most = max((count for *_, count in bars), default=1)
    drawn = "".join(
        f"<tr><td>{low}-{high}</td><td>{count}</td>"
        f'<td><span class="bar" style="width:{30 * count / most:.2f}em"></span></td></tr>'
        for low, high, count in bars
    )
    findings = "".join(
        f'<tr><td class="{finding.severity}">{finding.severity}</td><td>{escaped(finding.check)}</td>'
        f"<td>{escaped(finding.text)}{'; ' if finding.cure else ''}{escaped(finding.cure)} "
        f'<span class="id">{escaped(", ".join(finding.examples))}</span></td></tr>'
        for finding in report.findings
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<table>{"".join(cells(fact) for fact in facts(report))}</table>
<h2>Findings: {verdict(report)}</h2><table>{findings}</table>
<h2>{report.lengths.unit} per row</h2><table>{drawn}</table>
<h2>Rows</h2><p><span class="t">Green</span>: tokens that are learned (in a comparison: compared).
<span class="e">Blue</span>: learned EOS. <span class="r">Grey</span>: tokens that are only read.</p>
{"".join(map(_html_row, rows))}</body></html>
"""


def escaped(value: object) -> str:
    return html.escape(printable(str(value)))


def _html_row(view: View) -> str:
    spans = []
    for piece in view.pieces:
        kind = "e" if piece.trained and piece.is_eos else "t" if piece.trained else "r"
        hint = "" if piece.token is None else f' title="{piece.token}"'
        spans.append(f'<span class="{kind}"{hint}>{escaped(piece.text)}</span>')
    more = f" ... {view.left_out} more" if view.left_out else ""
    return f"<h3>{escaped(view.title)}</h3><pre>{''.join(spans)}{more}</pre>\n"
