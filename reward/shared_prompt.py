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

from policy.encoding import pad
from policy.rollout import like_length_groups
from reward.scalar_model import scalars

PADDING = -1
EXACT = 1e-4  # what float32 may lose, relative to the score


class PackedAnswers(NamedTuple):
    """Rows of a prompt and answers to it; answers keep the order they were given in, over all rows."""

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width) of a token in the text it belongs to
    segments: Tensor  # (rows, width) 0 on the prompt, k on the row's k-th answer, PADDING on the right
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
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []
    row: list[int] = []
    column: list[int] = []
    for prompt, prompt_answers in zip(prompts, answers, strict=True):
        for k, answer in enumerate(prompt_answers):
            n = len(ids[-1]) if ids else 0
            joined = _cost(n + len(answer), hidden_size) - _cost(n, hidden_size)
            if k == 0 or not share or joined > _cost(len(prompt) + len(answer), hidden_size):
                ids.append(list(prompt))
                positions.append(list(range(len(prompt))))
                segments.append([0] * len(prompt))
            ids[-1] += answer
            positions[-1] += range(len(prompt), len(prompt) + len(answer))
            segments[-1] += [segments[-1][-1] + 1] * len(answer)
            row.append(len(ids) - 1)
            column.append(len(ids[-1]) - 1)
    return PackedAnswers(
        pad(ids, pad_id, "right").ids,
        pad(positions, 0, "right").ids,
        pad(segments, PADDING, "right").ids,
        torch.tensor(row),
        torch.tensor(column),
    )


def _cost(width: int, hidden_size: int) -> float:
    """Of a row, in tokens: attention costs 4 * width * hidden per token and layer, everything else about
    24 * hidden^2. A row is joined only as long as its wider attention is cheaper than reading the prompt again."""
    return width * (1 + width / (6 * hidden_size))


def packed_scores(model: PreTrainedModel, packed: PackedAnswers, normalised: bool = True) -> Tensor:
    """(answers,) float32 r(prompt, answer), each read at its last token."""
    body = getattr(model, model.base_model_prefix)
    states, answers = [], []
    for rows, width in like_length_groups((packed.segments != PADDING).sum(1)):
        segments = packed.segments[rows, :width]
        hidden = body(
            input_ids=packed.ids[rows, :width],
            attention_mask=_mask(model, segments),
            position_ids=packed.positions[rows, :width],
            use_cache=False,
        ).last_hidden_state
        place = torch.full((len(packed.ids),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        here = (place[packed.row] >= 0).nonzero().squeeze(1)
        states.append(hidden[place[packed.row[here]], packed.column[here]])
        answers.append(here)
    return scalars(model, torch.cat(states)[torch.cat(answers).argsort()], normalised)


def _mask(model: PreTrainedModel, segments: Tensor) -> Tensor | None:
    """(rows, 1, width, width) of what each token sees; None where plain causal attention does (padding on the right is
    seen by padding alone)."""
    if int(segments.max()) <= 1:
        return None
    causal = torch.ones(2 * [segments.shape[1]], dtype=torch.bool, device=segments.device).tril()
    seen = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    mask = (seen & causal).unsqueeze(1)
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
