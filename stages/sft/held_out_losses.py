"""The loss on held-out demonstrations, row by row, and its comparison between models with different templates.

Nats per token are comparable only if both models have the same tokens; another template or tokenizer splits the answer
differently. Bits per byte are comparable in any case: the negative log2 probability of the answer, its end included,
per byte of its UTF-8 text. A comparison uses only rows that both models were measured on, because the template also
decides which rows fit in max_length.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_schema import Demonstration, to_dict

HELD_OUT_LOSSES = "held_out_losses.jsonl"  # in a checkpoint: one RowLoss per line


class RowLoss(NamedTuple):
    """Loss of one model on one demonstration."""

    demonstration: str  # digest of its messages
    nats: float  # -log probability of its answers, EOS included
    tokens: int  # of its answers, EOS included
    bytes: int  # of its answers as UTF-8, whatever the template


class Difference(NamedTuple):
    """Difference of two models' bits per byte on the same rows."""

    bits_per_byte: float  # the first's minus the second's
    standard_error: float  # over rows; NaN for a single row


def row_loss(record: Demonstration, nats: float, tokens: int) -> RowLoss:
    messages = to_dict(record)["messages"]
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
    answers = [message.content for message in record.messages if message.role == "assistant"]
    return RowLoss(digest, nats, tokens, sum(len(text.encode()) for text in answers))


def summarise_losses(rows: Sequence[RowLoss]) -> dict[str, float]:
    """A stage's held-out metrics; {} without rows."""
    if not rows:
        return {}
    tokens = sum(row.tokens for row in rows)
    return {
        "held_out_loss": sum(row.nats for row in rows) / tokens,
        "held_out_bits_per_byte": bits_per_byte(rows),
        "held_out_tokens": float(tokens),
        "held_out_rows": float(len(rows)),
    }


def bits_per_byte(rows: Sequence[RowLoss]) -> float:
    return sum(row.nats for row in rows) / math.log(2) / sum(row.bytes for row in rows)


def write_losses(checkpoint: Path, rows: Sequence[RowLoss]) -> None:
    """Write the losses into the checkpoint; without rows, no file is written."""
    if not rows:
        return
    lines = [json.dumps(row._asdict()) + "\n" for row in rows]
    (checkpoint / HELD_OUT_LOSSES).write_text("".join(lines), encoding="utf-8")


def read_losses(checkpoint: Path) -> dict[str, RowLoss]:
    """Demonstration digest -> loss; {} if a checkpoint has none."""
    path = checkpoint / HELD_OUT_LOSSES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row.demonstration: row for row in (RowLoss(**json.loads(line)) for line in lines)}


def compare_losses(first: Mapping[str, RowLoss], second: Mapping[str, RowLoss]) -> Difference:
    """Compare two models on their rows, which must be the same and at least one.

    The difference is a ratio of sums over rows (nats to bytes); its standard error is that of a ratio estimator
    (Cochran 1977, 6.3), with rows as the independent samples and both models fixed."""
    nats = [row.nats - second[name].nats for name, row in first.items()]
    sizes = [row.bytes for row in first.values()]
    n, total = len(nats), sum(sizes)
    ratio = sum(nats) / total
    squares = sum((d - ratio * size) ** 2 for d, size in zip(nats, sizes, strict=True))
    error = math.sqrt(squares * n / (n - 1)) / total if n > 1 else math.nan
    return Difference(ratio / math.log(2), error / math.log(2))
