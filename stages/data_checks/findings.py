"""What an examination of data or of a tokenizer finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3  # ids that a finding names


@dataclass(frozen=True)
class Finding:
    severity: Severity  # error: training on this goes wrong, or cannot begin
    check: str  # one word, the same for every finding of its kind
    text: str  # one line
    cure: str  # one line; empty for a note that asks for nothing
    count: int | None = None  # rows, where rows were counted
    examples: tuple[str, ...] = ()  # ids of some of them

    def as_json(self) -> dict[str, Any]:
        row = asdict(self) | {"examples": list(self.examples)}
        return {key: value for key, value in row.items() if value is not None and value != []}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def one_line(text: object, limit: int = 200) -> str:
    """White space folded and the end cut off, for a text that somebody else wrote."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
