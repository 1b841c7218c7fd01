"""Sample responses with an explicit random generator: plain sampling at a temperature, as PPO's maths assumes.

Hugging Face's `generate` draws from the global generator and applies the checkpoint's own sampling habits, so a run
could neither be repeated exactly nor trusted to sample from the distribution it computes ratios with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from policy.masks import position_ids


class Responses(NamedTuple):
    tokens: Tensor  # (batch, response) ids, the padding id after the end
    lengths: Tensor  # (batch,) real tokens, EOS included
    ended: Tensor  # (batch,) True where EOS was sampled, False where max_new_tokens cut the answer


@torch.no_grad()
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
) -> Responses:
    """Answer left-padded prompts (batch, prompt); `rng` lives on the model's device.

    Rows that have ended leave the batch: a long answer costs its own length, not that of the whole batch.
    """
    batch = len(prompts)
    tokens = torch.full((batch, max_new_tokens), pad_id, device=prompts.device)
    lengths = torch.full((batch,), max_new_tokens, device=prompts.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(batch, device=prompts.device)  # which row of the batch each living sequence is
    mask, positions, step_input = prompt_mask.long(), position_ids(prompt_mask), prompts
    for step in range(max_new_tokens):
        logits = model(
            input_ids=step_input,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=rng).squeeze(1)
        tokens[rows, step] = drawn
        stops = drawn == eos_id
        lengths[rows[stops]] = step + 1
        ended[rows[stops]] = True
        living = (~stops).nonzero().squeeze(1)
        if len(living) == 0:
            break
        if len(living) < len(rows):
            cache.batch_select_indices(living)
            rows, mask, positions, drawn = rows[living], mask[living], positions[living], drawn[living]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
        step_input = drawn.unsqueeze(1)
    return Responses(tokens[:, : int(lengths.max())], lengths, ended)
