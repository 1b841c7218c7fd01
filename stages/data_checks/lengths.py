"""Lengths of rows in words or tokens: counts, limits, quantiles."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record, Records, prompt_messages
from stages.data_checks.findings import Finding, Severity

if TYPE_CHECKING:
    from policy.encoding import Encoded

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


class Lengths(NamedTuple):
    unit: str  # "tokens" or "words"
    whole: array[int]  # one per record; for a comparison the prompt with its longest response
    answers: array[int]  # one per answer


def conversations(record: Record) -> list[tuple[Message, ...]]:
    """The conversations a model would read: one, or for a comparison one per response; none for a document."""
    if isinstance(record, Demonstration):
        return [record.messages]
    if isinstance(record, Comparison):
        return [(*record.prompt, Message("assistant", response)) for response in record.responses]
    return [record.prompt] if isinstance(record, Prompt) else []


def learned(row: Encoded, kind: type, talk: Sequence[Message]) -> list[bool]:
    """True on tokens that a model learns to write: all answers of a demonstration that are not marked otherwise, the
    last one of a comparison, none of a prompt."""
    if kind is Demonstration:
        from policy.encoding import learned_tokens

        return learned_tokens(row, talk)
    ends = len(row.ids) if kind is Comparison else 0
    start = ends
    while start and row.is_response[start - 1]:
        start -= 1
    return [start <= i < ends for i in range(len(row.ids))]


def add_words(record: Record, lengths: Lengths) -> None:
    """Append a record's words and punctuation marks; each Han or Kana character counts as a word."""
    if isinstance(record, Document):
        lengths.whole.append(len(WORD.findall(record.text)))
        return
    prompt = sum(len(WORD.findall(message.content)) for message in prompt_messages(record))
    answers = [len(WORD.findall(talk[-1].content)) for talk in conversations(record) if talk[-1].role == "assistant"]
    lengths.whole.append(prompt + max(answers, default=0))
    lengths.answers.extend(answers)


def length_findings(records: Records[Any], lengths: Lengths, max_length: int | None) -> list[Finding]:
    if max_length is None:
        return []
    count = sum(length > max_length for length in lengths.whole)
    if not count:
        return []
    n = len(lengths.whole)
    text = f"{count} of {n} rows are longer than {max_length} {lengths.unit} and would be dropped"
    text += f" (the longest has {max(lengths.whole)})"
    severity: Severity = "error" if count == n else "warning"
    return [Finding(severity, "too_long", text, "raise max_length, or shorten the rows", count)]


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Smallest, median, 95th percentile, largest, mean and sum; {} without lengths."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    last = len(ordered) - 1
    points = {"min": 0.0, "p50": 0.5, "p95": 0.95, "max": 1.0}
    total = sum(ordered)
    return {name: ordered[round(share * last)] for name, share in points.items()} | {
        "mean": round(total / len(ordered), 1),
        "total": total,
    }


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """-> (first, last, count) for the lengths 0, 1, 2-3, 4-7, 8-15, ... from the smallest to the largest."""
    counts = Counter(length.bit_length() for length in lengths)
    if not counts:
        return []
    return [(2 ** (bits - 1) if bits else 0, 2**bits - 1, counts[bits]) for bits in range(min(counts), max(counts) + 1)]
