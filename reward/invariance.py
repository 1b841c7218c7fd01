"""Check that a score depends only on its text. If scores changed with the batch, the padding or neighbouring texts,
PPO would be rewarded for something other than its answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.sampling.rollout import Rollout, as_rollout
from reward.scalar_model import response_scores, stored_normalisation

TOLERANCE = 1e-4  # for a float32 score, relative to the largest one if that is above 1
PROMPT_LENGTHS, RESPONSE_LENGTHS = (9, 2, 5, 3), (2, 7, 1, 4)  # in tokens, of the test texts
EXTRA_PADDING = 6


@torch.no_grad()
def check_scores_are_independent(model: PreTrainedModel, pad_id: int) -> None:
    """Raise ModelError unless a few fixed texts score the same alone, together, in another order, with more padding on
    both sides, and with the model's own `forward`, as AutoModelForSequenceClassification reads them."""
    prompts, responses = _texts(model, pad_id)
    alone = torch.cat([_scores(model, [p], [r], pad_id) for p, r in zip(prompts, responses, strict=True)])
    tried = {
        "scored together": _scores(model, prompts, responses, pad_id),
        "scored in another order": _scores(model, prompts[::-1], responses[::-1], pad_id).flip(0),
        "padded further": _scores(model, prompts, responses, pad_id, EXTRA_PADDING),
        "read by the model's own forward": _own_scores(model, prompts, responses, pad_id),
    }
    largest = max(1.0, alone.abs().max().item())
    for how, scores in tried.items():
        off = (scores - alone).abs().max().item()
        if not off <= TOLERANCE * largest:  # a NaN is off too
            raise ModelError(
                f"{type(model).__name__} gives a text a different score when it is {how} (off by {off:.2g}, allowed "
                f"{TOLERANCE * largest:.2g}). Dropout, attention to padding or a different head can cause this; use a "
                "causal model in evaluation mode with a linear head on its last token."
            )


def _texts(model: PreTrainedModel, pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    """Fixed random ids from the model's vocabulary, without the padding token."""
    rng = torch.Generator().manual_seed(0)
    vocabulary = torch.tensor([i for i in range(min(model.config.get_text_config().vocab_size, 4096)) if i != pad_id])
    drawn = [
        [vocabulary[torch.randint(len(vocabulary), (n,), generator=rng)].tolist() for n in lengths]
        for lengths in (PROMPT_LENGTHS, RESPONSE_LENGTHS)
    ]
    return drawn[0], drawn[1]


def _scores(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    extra: int = 0,
) -> Tensor:
    rollout = as_rollout(prompts, responses, pad_id, model.device)
    if extra:
        ids = torch.full((len(prompts), extra), pad_id, device=model.device)
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        rollout = Rollout(
            torch.cat([ids, rollout.prompts], 1),
            torch.cat([nothing, rollout.prompt_mask], 1),
            torch.cat([rollout.responses, ids], 1),
            torch.cat([rollout.response_mask, nothing], 1),
            rollout.ended,
        )
    return response_scores(model, rollout).cpu()


def _own_scores(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> Tensor:
    """Scores of right-padded rows by the model's own `forward`, which finds the last token that is not padding."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    return stored_normalisation(model)(logits).cpu()
