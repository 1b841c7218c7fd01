"""Sample responses with an explicit random generator: plain sampling at a temperature, as PPO's maths assumes.

Hugging Face's `generate` uses the global generator and applies the checkpoint's own sampling settings. A run could then
not be repeated exactly, and samples might not come from the distribution that PPO computes ratios with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from policy.errors import ModelError
from policy.maths.masks import position_ids
from policy.precision import reads_model


class Responses(NamedTuple):
    tokens: Tensor  # (batch, response) ids, the padding id after the end
    lengths: Tensor  # (batch,) number of real tokens, EOS included
    ended: Tensor  # (batch,) True if EOS was sampled, False if max_new_tokens cut the answer off


@torch.no_grad()
@reads_model
def sample_responses(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    rng: torch.Generator,
    answers_each: int = 1,
) -> Responses:
    """Sample `answers_each` answers to each left-padded prompt (prompts, prompt), those of one prompt in sequence.

    `rng` must be on the model's device. A prompt is read once for all its answers. Rows that have ended leave the
    batch, so each answer costs only its own length. Raises ModelError if logits are not finite."""
    batch = len(prompts) * answers_each
    tokens = torch.full((batch, max_new_tokens), pad_id, device=prompts.device)
    lengths = torch.full((batch,), max_new_tokens, device=prompts.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(batch, device=prompts.device)  # row in the batch of each unfinished sequence
    mask, positions = prompt_mask.long(), position_ids(prompt_mask)
    logits = _next_token_logits(model, prompts, mask, positions, cache)
    if answers_each > 1:
        cache.batch_repeat_interleave(answers_each)
        logits, mask, positions = (t.repeat_interleave(answers_each, dim=0) for t in (logits, mask, positions))
    for step in range(max_new_tokens):
        probabilities = (logits.float() / temperature).softmax(-1)
        # A single logit that is NaN or infinite makes all probabilities of its row NaN.
        if probabilities[:, 0].isnan().any():
            raise ModelError("cannot sample: logits are not finite (diverged weights); lower the learning rate.")
        drawn = torch.multinomial(probabilities, 1, generator=rng).squeeze(1)
        tokens[rows, step] = drawn
        stops = drawn == eos_id
        lengths[rows[stops]] = step + 1
        ended[rows[stops]] = True
        living = (~stops).nonzero().squeeze(1)
        if len(living) == 0 or step + 1 == max_new_tokens:
            break
        if len(living) < len(rows):
            cache.batch_select_indices(living)
            rows, mask, positions, drawn = rows[living], mask[living], positions[living], drawn[living]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
        logits = _next_token_logits(model, drawn.unsqueeze(1), mask, positions, cache)
    return Responses(tokens[:, : int(lengths.max())], lengths, ended)


def _next_token_logits(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    """(batch, vocabulary) logits after the last of `ids` (batch, new tokens), which are added to the cache."""
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits
