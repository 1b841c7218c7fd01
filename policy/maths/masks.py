"""Masks of real tokens: every mask here is True on real tokens and comes from lengths, never from token ids.

With masks from token ids, an EOS token that is also the padding token would silently be left out of the loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from policy.errors import ModelError


class Truncation(NamedTuple):
    responses: Tensor  # (batch, response) ids, pad_id after the end
    lengths: Tensor  # (batch,) number of real tokens, the stop token included
    found: Tensor  # (batch,) True if the response contains the stop token


def mask_from_lengths(lengths: Tensor, width: int) -> Tensor:
    """(batch,) lengths -> (batch, width) bool, True on the first `length` positions (all of them if it is longer)."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(-1)


def last_token_index(mask: Tensor) -> Tensor:
    """(batch, width) bool -> (batch,) index of the last True of each row (ModelError for a row without True)."""
    index = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask.bool(), index, -1).amax(dim=-1)
    if (last < 0).any():
        rows = (last < 0).nonzero().flatten().tolist()
        raise ModelError(f"rows {rows} of {len(last)} have no real token, hence no last one; drop empty texts.")
    return last


def position_ids(attention_mask: Tensor) -> Tensor:
    """(batch, width) mask -> (batch, width) int64: number of real tokens before each position.

    Left padding gets 0, so every text starts at 0; right padding gets the row's length, which no real token reads.
    Source: lm-human-preferences `positions_for`."""
    real = attention_mask.long()
    return real.cumsum(dim=-1) - real


def is_stop(ids: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """True where an id is one of the stop tokens; same shape."""
    stops = torch.zeros_like(ids, dtype=torch.bool)
    for stop in stop_ids:
        stops |= ids == stop
    return stops


def truncate_after_token(responses: Tensor, stop_ids: Sequence[int], pad_id: int, first_index: int = 0) -> Truncation:
    """Keep each response up to and including the first of `stop_ids` at index >= `first_index`; pad the rest.

    A response without a stop token stays whole and has `found` False. `pad_id` may be a stop token, since lengths, not
    ids, mark the end. Source: lm-human-preferences `postprocess_fn_from_hparams`."""
    width = responses.shape[-1]
    index = torch.arange(width, device=responses.device)
    stops = is_stop(responses, stop_ids) & (index >= first_index)
    found = stops.any(dim=-1)
    lengths = torch.where(stops, index + 1, width).amin(dim=-1)
    return Truncation(responses.masked_fill(~mask_from_lengths(lengths, width), pad_id), lengths, found)


def check_mask(values: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless `mask` is boolean and shaped as `values`: broadcasting would silently miscount tokens."""
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(
            f"the mask is {mask.dtype} {tuple(mask.shape)} but must be torch.bool {tuple(values.shape)} as its values."
        )
