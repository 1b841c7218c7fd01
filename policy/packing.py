"""Packs sequences of unequal length next to each other into rows, so that almost no padding is computed.

Each sequence has positions from 0 and attends only to itself: transformers derives the mask from the positions. The
states equal those of separate rows. A model that cannot read packed rows (tested once) gets separate rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.precision import autocast, reads_model

EXACT = 1e-4  # rounding error allowed in float32, relative to the largest state
_reads_packed: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Places(NamedTuple):
    """Positions of sequences in rows: sequence i begins in row `row[i]` at column `column[i]`."""

    row: list[int]
    column: list[int]
    n_rows: int
    width: int


def pack_lengths(lengths: Sequence[int], width: int = 0) -> Places:
    """Pack by best fit, longest first: each sequence goes where it leaves the least room. Rows are `width` wide (0: as
    wide as the longest sequence, so that packing never makes attention wider than separate rows do)."""
    width = width or max(lengths, default=0)
    row, column = [0] * len(lengths), [0] * len(lengths)
    room: list[tuple[int, int]] = []  # (left, row), sorted
    n_rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = bisect_left(room, (lengths[i], -1))
        if fits == len(room):
            left, row[i] = width, n_rows
            n_rows += 1
        else:
            left, row[i] = room.pop(fits)
        column[i] = width - left
        insort(room, (left - lengths[i], row[i]))
    return Places(row, column, n_rows, width)


def one_a_row(lengths: Sequence[int]) -> Places:
    """Put each sequence in a row of its own, from the first column on."""
    n = len(lengths)
    return Places(list(range(n)), [0] * n, n, max(lengths, default=0))


@reads_model
def states_of_sequences(model: PreTrainedModel, ids: Tensor, lengths: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Return (sum of stop - start, hidden): the body's last states at tokens [start, stop) of each sequence, in order.

    ids (tokens,) are the concatenated sequences and `lengths` (sequences,) their lengths. start and stop (sequences,)
    count within each sequence."""
    device = ids.device
    places = (pack_lengths if reads_packed(model) else one_a_row)(lengths.tolist())
    row, column = torch.tensor(places.row, device=device), torch.tensor(places.column, device=device)
    hidden = _read(model, ids, lengths, row, column, places.n_rows, places.width)
    owner, offset = _tokens(stop - start)
    return hidden[row[owner], column[owner] + start[owner] + offset]


def _read(
    model: PreTrainedModel, ids: Tensor, lengths: Tensor, row: Tensor, column: Tensor, n_rows: int, width: int
) -> Tensor:
    """(n_rows, width, hidden) states of the rows; padding is on the right, with id 0."""
    owner, offset = _tokens(lengths)
    laid = torch.zeros(n_rows, width, dtype=torch.long, device=ids.device)
    laid[row[owner], column[owner] + offset] = ids
    positions = None  # one sequence per row: plain causal attention, where no real token sees the padding
    if n_rows < len(lengths):
        positions = torch.zeros_like(laid)
        positions[row[owner], column[owner] + offset] = offset
    body = getattr(model, model.base_model_prefix)
    hidden: Tensor = body(input_ids=laid, position_ids=positions, use_cache=False).last_hidden_state
    return hidden


def _tokens(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(sequences,) token counts -> (sequence, offset within it) of every token, each (sum of counts,)."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first[owner]


def reads_packed(model: PreTrainedModel) -> bool:
    """Whether packed sequences get the same states as separate ones, tested once per model on a few random ids. Models
    with flash kernels, recurrent states instead of attention, or positions made from a mask fail the test."""
    if model not in _reads_packed:
        _reads_packed[model] = _try_packed(model)
    return _reads_packed[model]


@torch.no_grad()
def _try_packed(model: PreTrainedModel) -> bool:
    lengths = torch.tensor([7, 4, 3, 5, 2])
    rng = torch.Generator().manual_seed(0)  # leaves the run's own generators unchanged
    ids = torch.randint(0, model.config.vocab_size, (int(lengths.sum()),), generator=rng).to(model.device)
    lengths = lengths.to(model.device)
    row, column = (torch.tensor(values, device=model.device) for values in ([0, 1, 1, 2, 2], [0, 0, 4, 0, 5]))
    alone = torch.arange(len(lengths), device=model.device)
    owner, offset = _tokens(lengths)
    was_training = model.training
    model.eval()
    with autocast(model.device, enabled=False):  # its rounding would hide a difference
        apart = _read(model, ids, lengths, alone, torch.zeros_like(alone), len(lengths), 7)[owner, offset]
        together = _read(model, ids, lengths, row, column, 3, 7)[row[owner], column[owner] + offset]
    model.train(was_training)
    allowed = EXACT * torch.finfo(together.dtype).eps / torch.finfo(torch.float32).eps
    return bool((together - apart).abs().max() <= allowed * apart.abs().max())
