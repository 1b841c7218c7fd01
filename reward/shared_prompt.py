"""The answers to one prompt in one row: [prompt | answer | answer | ...], so that K answers cost the prompt once.

Each answer sees the prompt and itself, its positions go on from the prompt's end, and its score is read at its last
token: the numbers are those of K separate rows. (One forward pass for all K answers of a prompt: InstructGPT 3.5.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.packing import one_a_row, pack_lengths
from reward.scalar_model import scalars

EXACT = 1e-4  # what float32 may lose, relative to the score


class PackedAnswers(NamedTuple):
    """Prompts with their answers behind them, laid side by side in rows; answers keep the order they were given in."""

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width) of a token in the text it belongs to
    segments: Tensor  # (rows, width) which prompt or answer of the row a token belongs to, from 1 on; 0 is padding
    prompts: Tensor  # (rows, width) the segment of that token's prompt
    row: Tensor  # (answers,) where each answer's last token stands
    column: Tensor  # (answers,)


def pack_answers(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    hidden_size: int,
    share: bool = True,
) -> PackedAnswers:
    """`answers[i]` are those to `prompts[i]`; ids all. With `share` false every answer has a row of its own."""
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
    """A prompt and answers to it, not yet laid anywhere."""

    ids: list[int]
    positions: list[int]
    segments: list[int]  # 0 on the prompt, k on the k-th answer
    ends: list[int]  # where each answer's last token stands


def _cost(width: int, hidden_size: int) -> float:
    """Of a row, in tokens: attention costs 4 * width * hidden per token and layer, everything else about
    24 * hidden^2. An answer joins only as long as the wider attention is cheaper than reading the prompt again."""
    return width * (1 + width / (6 * hidden_size))


def packed_scores(model: PreTrainedModel, packed: PackedAnswers, normalised: bool = True) -> Tensor:
    """(answers,) float32 r(prompt, answer), each read at its last token."""
    body = getattr(model, model.base_model_prefix)
    hidden = body(
        input_ids=packed.ids, attention_mask=_mask(model, packed), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return scalars(model, hidden[packed.row, packed.column], normalised)


def _mask(model: PreTrainedModel, packed: PackedAnswers) -> Tensor | None:
    """(rows, 1, width, width) of what each token sees: its own segment up to itself, and its prompt. None for one
    answer a row, where plain causal attention does the same (padding on the right is seen by padding alone)."""
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
    """Whether this model gives packed rows the scores it gives separate ones, tried on these. Models whose attention
    takes no mask of our own (a window, a state, flash kernels) do not."""
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
