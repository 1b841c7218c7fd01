"""Puts the answers to one prompt in one row: [prompt | answer | answer | ...], so that the prompt is read only once.

Each answer attends to the prompt and itself, its positions continue from the prompt's end, and its score is read at its
last token, so scores equal those of K separate rows. (One forward pass for all K answers: InstructGPT 3.5.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.packing import one_a_row, pack_lengths
from reward.scalar_model import scalars

EXACT = 1e-4  # rounding error allowed in float32, relative to the score


class PackedAnswers(NamedTuple):
    """Prompts, each followed by its answers, packed into rows; answers keep the order in which they were given."""

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width) position of a token in its own text
    segments: Tensor  # (rows, width) number of the prompt or answer in the row, from 1; 0 is padding
    prompts: Tensor  # (rows, width) the segment of the token's prompt
    row: Tensor  # (answers,) row of each answer's last token
    column: Tensor  # (answers,) its column


def pack_answers(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    hidden_size: int,
    share: bool = True,
) -> PackedAnswers:
    """Pack ids: `answers[i]` are the answers to `prompts[i]`. With `share` false every answer has its own row."""
    texts: list[_Text] = []
    for prompt, own in zip(prompts, answers, strict=True):
        for k, answer in enumerate(own):
            n = len(texts[-1].ids) if k else 0
            joined = _cost(n + len(answer), hidden_size) - _cost(n, hidden_size)
            if k == 0 or not share or joined > _cost(len(prompt) + len(answer), hidden_size):
                texts.append(_Text(list(prompt), list(range(len(prompt))), [0] * len(prompt), []))
            text = texts[-1]
            text.ids.extend(answer)
            text.positions.extend(range(len(prompt), len(prompt) + len(answer)))
            text.segments.extend([len(text.ends) + 1] * len(answer))
            text.ends.append(len(text.ids) - 1)
    lengths = [len(text.ids) for text in texts]
    places = (pack_lengths if share else one_a_row)(lengths)
    laid = torch.zeros(4, places.n_rows, places.width, dtype=torch.long)
    laid[0] = pad_id
    used = [0] * places.n_rows  # segments of a row so far
    row: list[int] = []
    column: list[int] = []
    for text, at, begin in zip(texts, places.row, places.column, strict=True):
        segments = torch.tensor(text.segments) + used[at] + 1
        parts = torch.tensor(text.ids), torch.tensor(text.positions), segments, segments[:1].expand(len(segments))
        laid[:, at, begin : begin + len(segments)] = torch.stack(parts)
        used[at] += len(text.ends) + 1
        row += [at] * len(text.ends)
        column += [begin + end for end in text.ends]
    return PackedAnswers(laid[0], laid[1], laid[2], laid[3], torch.tensor(row), torch.tensor(column))


class _Text(NamedTuple):
    """A prompt and answers to it, not yet placed in a row."""

    ids: list[int]
    positions: list[int]
    segments: list[int]  # 0 on the prompt, k on the k-th answer
    ends: list[int]  # index of each answer's last token


def _cost(width: int, hidden_size: int) -> float:
    """Cost of a row, in tokens: attention costs 4 * width * hidden per token and layer, everything else about
    24 * hidden^2. An answer joins a row only if the wider attention is cheaper than reading the prompt again."""
    return width * (1 + width / (6 * hidden_size))


def packed_scores(model: PreTrainedModel, packed: PackedAnswers, normalised: bool = True) -> Tensor:
    """(answers,) float32 r(prompt, answer), each read at the answer's last token."""
    body = getattr(model, model.base_model_prefix)
    hidden = body(
        input_ids=packed.ids, attention_mask=_mask(model, packed), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return scalars(model, hidden[packed.row, packed.column], normalised)


def _mask(model: PreTrainedModel, packed: PackedAnswers) -> Tensor | None:
    """(rows, 1, width, width) attention mask: each token sees its own segment up to itself, and its prompt. None with
    one answer per row, where causal attention does the same (only padding sees the padding on the right)."""
    if len(packed.row) == len(packed.ids):
        return None
    causal = torch.ones(2 * [packed.ids.shape[1]], dtype=torch.bool, device=packed.ids.device).tril()
    key = packed.segments[:, None, :]
    mask = (((packed.segments[:, :, None] == key) | (packed.prompts[:, :, None] == key)) & causal).unsqueeze(1)
    if model.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


@torch.no_grad()
def can_share_prompt(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> bool:
    """Whether packed rows get the same scores as separate ones, tested on the given texts. Models whose attention does
    not accept a custom mask (sliding windows, recurrent states, flash kernels) fail the test."""
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    was_training = model.training
    model.eval()
    together, apart = (
        packed_scores(
            model,
            PackedAnswers(*(t.to(model.device) for t in pack_answers(prompts, answers, pad_id, 10**6, share))),
            normalised=False,
        )
        for share in (True, False)
    )
    model.train(was_training)
    return bool(((together - apart).abs() <= EXACT * (1 + apart.abs())).all())
