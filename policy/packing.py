"""Sequences of unequal length laid side by side in rows, so that almost no padding is computed.

Each sequence counts its positions from 0 and sees itself alone: transformers makes the mask out of the positions. The
states are those of separate rows; a model that cannot read so (tried once) gets separate rows.
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

EXACT = 1e-4  # what float32 may lose, relative to the largest state
_reads_packed: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Places(NamedTuple):
    """Where sequences stand: sequence i in `row[i]` from `column[i]` on."""

    row: list[int]
    column: list[int]
    n_rows: int
    width: int


def pack_lengths(lengths: Sequence[int], width: int = 0) -> Places:
    """Best fit, longest first: each sequence goes where it leaves the least room. Rows are `width` wide (0: as the
    longest sequence, so that packing never makes attention wider than it was)."""
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
    """Each sequence in a row of its own, from the first column on."""
    n = len(lengths)
    return Places(list(range(n)), [0] * n, n, max(lengths, default=0))


@reads_model
def states_of_sequences(model: PreTrainedModel, ids: Tensor, lengths: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """(sum of stop - start, hidden): the body's last states at tokens [start, stop) of each sequence, one after
    another.

    ids (tokens,) are the sequences end to end, `lengths` (sequences,) of them; start and stop count within a sequence.
    """
    device = ids.device
    places = (pack_lengths if reads_packed(model) else one_a_row)(lengths.tolist())
    row, column = torch.tensor(places.row, device=device), torch.tensor(places.column, device=device)
    hidden = _read(model, ids, lengths, row, column, places.n_rows, places.width)
    owner, offset = _tokens(stop - start)
    return hidden[row[owner], column[owner] + start[owner] + offset]


def _read(
    model: PreTrainedModel, ids: Tensor, lengths: Tensor, row: Tensor, column: Tensor, n_rows: int, width: int
) -> Tensor:
    """(n_rows, width, hidden) states of the rows; padding on the right holds id 0."""
    owner, offset = _tokens(lengths)
    laid = torch.zeros(n_rows, width, dtype=torch.long, device=ids.device)
    laid[row[owner], column[owner] + offset] = ids
    positions = None  # one sequence a row: plain causal attention, where no real token sees the padding
    if n_rows < len(lengths):
        positions = torch.zeros_like(laid)
        positions[row[owner], column[owner] + offset] = offset
    body = getattr(model, model.base_model_prefix)
    hidden: Tensor = body(input_ids=laid, position_ids=positions, use_cache=False).last_hidden_state
    return hidden


def _tokens(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(sequences,) counts -> (whose, which) of all tokens counted, each (sum of counts,)."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first[owner]


def reads_packed(model: PreTrainedModel) -> bool:
    """Whether the model gives packed sequences the states of separate ones, tried once on a few random ids. Flash
    kernels, states instead of attention and positions made from a mask do not."""
    if model not in _reads_packed:
        _reads_packed[model] = _try_packed(model)
    return _reads_packed[model]


@torch.no_grad()
def _try_packed(model: PreTrainedModel) -> bool:
    lengths = torch.tensor([7, 4, 3, 5, 2])
    rng = torch.Generator().manual_seed(0)  # the run's own generators must not notice
    ids = torch.randint(0, model.config.vocab_size, (int(lengths.sum()),), generator=rng).to(model.device)
    lengths = lengths.to(model.device)
    row, column = (torch.tensor(values, device=model.device) for values in ([0, 1, 1, 2, 2], [0, 0, 4, 0, 5]))
    alone = torch.arange(len(lengths), device=model.device)
    owner, offset = _tokens(lengths)
    was_training = model.training
    model.eval()
    with autocast(model.device, enabled=False):  # whose rounding would hide what is tried
        apart = _read(model, ids, lengths, alone, torch.zeros_like(alone), len(lengths), 7)[owner, offset]
        together = _read(model, ids, lengths, row, column, 3, 7)[row[owner], column[owner] + offset]
    model.train(was_training)
    allowed = EXACT * torch.finfo(together.dtype).eps / torch.finfo(torch.float32).eps
    return bool((together - apart).abs().max() <= allowed * apart.abs().max())
