"""Findings about data or a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3  # maximum number of ids in a finding


@dataclass(frozen=True)
class Finding:
    severity: Severity  # error: training on this fails or gives wrong results
    check: str  # name of the check, the same for all its findings
    text: str  # one line
    cure: str  # how to fix it, one line; empty if nothing needs fixing
    count: int | None = None  # number of rows, if rows were counted
    examples: tuple[str, ...] = ()  # ids of some of these rows

    def as_json(self) -> dict[str, Any]:
        row = asdict(self) | {"examples": list(self.examples)}
        return {key: value for key, value in row.items() if value is not None and value != []}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def one_line(text: object, limit: int = 200) -> str:
    """The text in one line, with white space collapsed and cut off at `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
