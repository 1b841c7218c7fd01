"""Lengths of rows, in tokens as the stages encode them or in words, and findings from encoding every row."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record, Records, prompt_messages
from stages.data_checks.findings import EXAMPLES, Finding, Severity
from stages.data_checks.tokenizer_checks import encode_rows, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from policy.encoding import Encoded

BATCH = 500
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


def learned(row: Encoded, kind: type) -> list[bool]:
    """True on tokens that a model learns to write: all answers of a demonstration, the last one of a comparison, none
    of a prompt."""
    if kind is Demonstration:
        return row.is_response
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


def token_lengths(
    records: Sequence[Any], kind: type, tokenizer: PreTrainedTokenizerBase
) -> tuple[Lengths, list[Finding]]:
    """-> (lengths in tokens as the stages encode them, findings from encoding every row)."""
    lengths = Lengths("tokens", array("q"), array("q"))
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    unknown = seen = 0

    def note(what: str, record: Record) -> None:
        counts[what] += 1
        examples.setdefault(what, []).append(record.id)
        del examples[what][EXAMPLES:]

    rest = iter(records)
    while batch := list(islice(rest, BATCH)):
        if kind is Document:
            ids = tokenizer([record.text for record in batch], add_special_tokens=False, verbose=False)["input_ids"]
            lengths.whole.extend(len(row) + 1 for row in ids)  # packing adds an EOS
            seen, unknown = seen + sum(map(len, ids)), unknown + sum(row.count(tokenizer.unk_token_id) for row in ids)
            continue
        talks = [conversations(record) for record in batch]
        encoded = iter(encode_rows(tokenizer, [talk for group in talks for talk in group]))
        for record, group in zip(batch, talks, strict=True):
            rows = list(islice(encoded, len(group)))
            refused = [row for row in rows if isinstance(row, str)]
            if refused:
                note(refused[0], record)
                continue
            good = [row for row in rows if not isinstance(row, str)]
            lengths.whole.append(max(len(row.ids) for row in good))
            for row in good:
                seen, unknown = seen + len(row.ids), unknown + row.ids.count(tokenizer.unk_token_id)
                if kind is Prompt:
                    continue
                n = sum(learned(row, kind))
                lengths.answers.append(n)
                if n == 0:
                    note("no mask", record)
                elif row.ids[-1] != tokenizer.eos_token_id:
                    note("no eos", record)
                elif n == 1:
                    note("only eos", record)
    return lengths, _encoding_findings(counts, examples, unknown / max(seen, 1), len(records))


def _encoding_findings(
    counts: Mapping[str, int], examples: Mapping[str, list[str]], unknown: float, n: int
) -> list[Finding]:
    texts: dict[str, tuple[Severity, str, str, str]] = {
        "no mask": ("error", "empty_mask", "no token has a loss, so nothing is learned", "delete these rows"),
        "no eos": (
            "error",
            "eos_not_trained",
            "an answer does not end with EOS",
            "make eos_token a special token, so that it is never split",
        ),
        "only eos": ("warning", "empty_target", "an answer is only EOS", "give it text, or delete the row"),
    }
    found = []
    for what, count in counts.items():
        rows, shown = f"{count} of {n} rows", tuple(examples[what])
        if what in texts:
            severity, check, text, cure = texts[what]
            found.append(Finding(severity, check, f"{rows}: {text}", cure, count, shown))
        else:
            found.append(refusal("error", rows, what, count, shown))
    if unknown >= 0.001:
        text = f"{unknown:.1%} of the tokens are not in the vocabulary"
        found.append(Finding("warning", "unknown_tokens", text, "use a tokenizer that was made for such text"))
    return found


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
