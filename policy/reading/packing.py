"""Packs sequences of unequal length next to each other into rows, so that almost no padding is computed.

Each sequence has positions from 0 and attends only to itself: transformers derives the mask from the positions. The
states equal those of separate rows, for models whose reading (policy/reading/ways.py) is of packed rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.reading.trunk import WHOLE, Part, states_of_part


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


def states_in_rows(
    model: PreTrainedModel, ids: Tensor, lengths: Tensor, start: Tensor, stop: Tensor, packed: bool, part: Part = WHOLE
) -> Tensor:
    """Return (sum of stop - start, hidden): the body's last states at tokens [start, stop) of each sequence, in order.

    ids (tokens,) are the concatenated sequences and `lengths` (sequences,) their lengths; start and stop (sequences,)
    count within each sequence. Rows hold several sequences, or one each with padding on its right. `part`: the layers
    that are run; its states below, if any, are (tokens, hidden) like the ids."""
    device = ids.device
    places = (pack_lengths if packed else one_a_row)(lengths.tolist())
    row, column = torch.tensor(places.row, device=device), torch.tensor(places.column, device=device)
    hidden = _read(model, ids, lengths, row, column, places.n_rows, places.width, part)
    owner, offset = _tokens(stop - start)
    return hidden[row[owner], column[owner] + start[owner] + offset]


def states_of_equals(
    model: PreTrainedModel, ids: Tensor, lengths: Tensor, start: Tensor, stop: Tensor, at_once: int, part: Part = WHOLE
) -> Tensor:
    """As `states_in_rows`, from rows without padding: at most `at_once` sequences of equal length share a pass."""
    sequences = ids.split(lengths.tolist())
    below = None if part.below is None else part.below.split(lengths.tolist())
    found: list[Tensor] = [ids.new_empty(0)] * len(sequences)
    for group in equal_groups(lengths.tolist(), at_once):
        given = part if below is None else part._replace(below=torch.stack([below[i] for i in group]))
        hidden = states_of_part(model, torch.stack([sequences[i] for i in group]), given)
        for i, own in zip(group, hidden, strict=True):
            found[i] = own[start[i] : stop[i]]
    return torch.cat(found)


def equal_groups(lengths: Sequence[int], at_once: int = 2**31) -> list[list[int]]:
    """Indices of equal lengths together, at most `at_once` in a group, shortest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[groups[-1][0]] != lengths[i] or len(groups[-1]) == at_once:
            groups.append([])
        groups[-1].append(i)
    return groups


def _read(
    model: PreTrainedModel,
    ids: Tensor,
    lengths: Tensor,
    row: Tensor,
    column: Tensor,
    n_rows: int,
    width: int,
    part: Part,
) -> Tensor:
    """(n_rows, width, hidden) states of the rows; padding is on the right, with id 0."""
    owner, offset = _tokens(lengths)
    laid = torch.zeros(n_rows, width, dtype=torch.long, device=ids.device)
    laid[row[owner], column[owner] + offset] = ids
    positions = None  # one sequence per row: plain causal attention, where no real token sees the padding
    if n_rows < len(lengths):
        positions = torch.zeros_like(laid)
        positions[row[owner], column[owner] + offset] = offset
    if part.below is not None:
        below = part.below.new_zeros(n_rows, width, part.below.shape[1])
        below[row[owner], column[owner] + offset] = part.below
        part = part._replace(below=below)
    return states_of_part(model, laid, part, position_ids=positions)


def _tokens(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(sequences,) token counts -> (sequence, offset within it) of every token, each (sum of counts,)."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first[owner]
