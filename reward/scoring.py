"""Scores texts in batches sorted by length; a score does not depend on the other texts or on the padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.sampling.rollout import as_rollout
from reward.scalar_model import response_scores


@torch.no_grad()
def score_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    *,
    batch_size: int = 32,
    normalised: bool = True,
) -> Tensor:
    """(n,) float32 scores on the CPU, in the order given."""
    scores = torch.zeros(len(prompts))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        rollout = as_rollout([prompts[i] for i in rows], [responses[i] for i in rows], pad_id, model.device)
        scores[rows] = response_scores(model, rollout, normalised).cpu()
    return scores
