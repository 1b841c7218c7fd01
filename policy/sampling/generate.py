"""Sample responses with an explicit random generator: plain sampling at a temperature, as PPO's maths assumes.

Hugging Face's `generate` uses the global generator and applies the checkpoint's own sampling settings. A run could then
not be repeated exactly, and samples might not come from the distribution that PPO computes ratios with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.maths.masks import is_stop
from policy.precision import reads_model
from policy.reading.trials import ANY
from policy.reading.ways import check_can_sample, reading_of
from policy.sampling.decoder import CachedDecoder, Decoder, RereadingDecoder
from policy.special_tokens import hidden_ids, mask_ids


class Responses(NamedTuple):
    tokens: Tensor  # (batch, response) ids, the padding id after the end
    lengths: Tensor  # (batch,) number of real tokens, the stop token included
    ended: Tensor  # (batch,) True if a stop token was sampled, False if max_new_tokens cut the answer off


@torch.no_grad()
@reads_model
def sample_responses(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    pad_id: int,
    rng: torch.Generator,
    answers_each: int = 1,
) -> Responses:
    """Sample `answers_each` answers to each left-padded prompt (prompts, prompt), those of one prompt in sequence.

    Each of `stop_ids` ends an answer; without any, all answers have `max_new_tokens` tokens. `rng` must be on the
    model's device. A prompt is read once for all its answers. Rows that have ended leave the batch, so each answer
    costs only its own length. Ids without a token are never drawn. Raises ModelError if logits are not finite."""
    batch = len(prompts) * answers_each
    tokens = torch.full((batch, max_new_tokens), pad_id, device=prompts.device)
    lengths = torch.full((batch,), max_new_tokens, device=prompts.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)

    decoder = _decoder(model, prompts, prompt_mask, max_new_tokens)
    hidden = torch.tensor(hidden_ids(model), dtype=torch.long, device=prompts.device)
    rows = torch.arange(batch, device=prompts.device)  # row in the batch of each unfinished sequence
    if answers_each > 1:
        decoder.select(torch.arange(len(prompts), device=prompts.device).repeat_interleave(answers_each))
    for step in range(max_new_tokens):
        logits = mask_ids(decoder.logits, hidden)
        probabilities = (logits.float() / temperature).softmax(-1)
        drawn = draw(probabilities, rng)
        tokens[rows, step] = drawn
        stops = is_stop(drawn, stop_ids)
        # A single logit that is NaN or infinite makes all probabilities of its row NaN. All that has to be known of a
        # step is asked at once, since a GPU's queue of work is empty after each question.
        failed, some_end, all_end = torch.stack([probabilities[:, 0].isnan().any(), stops.any(), stops.all()]).tolist()
        if failed:
            raise ModelError("cannot sample: logits are not finite (diverged weights); lower the learning rate.")
        if some_end:
            lengths[rows[stops]] = step + 1
            ended[rows[stops]] = True
        if all_end or step + 1 == max_new_tokens:
            break
        if some_end:
            living = (~stops).nonzero().squeeze(1)
            decoder.select(living)
            rows, drawn = rows[living], drawn[living]
        decoder.append(drawn)
    return Responses(tokens[:, : int(lengths.max())], lengths, ended)


def draw(probabilities: Tensor, rng: torch.Generator | None) -> Tensor:
    """(rows, vocabulary) -> (rows,) ids, each drawn with its probability.

    These are the ids that `torch.multinomial` draws from the same generator, without its checks of the probabilities,
    which read each of them three times more and make a GPU wait twice."""
    races = _exponentials(probabilities, rng)
    return torch.div(probabilities, races, out=races).argmax(-1)


def _exponentials(like: Tensor, rng: torch.Generator | None) -> Tensor:
    """Standard exponential numbers in the shape and type of `like`.

    On a CPU `exponential_` takes one logarithm after the other, which was a fifth of the time of sampling. The same
    uniform numbers, with all their logarithms taken at once, give the same results."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return torch.empty_like(like).exponential_(1, generator=rng)
    uniform = torch.empty(like.shape, dtype=torch.float64).uniform_(generator=rng)
    return uniform.neg_().log1p_().neg_().float()


def _decoder(model: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, max_new_tokens: int) -> Decoder:
    """The fastest way to decode that is exact for this model and these prompts."""
    longest = prompts.shape[1] + max_new_tokens
    check_can_sample(model, longest)
    reading = reading_of(model, longest)
    if reading.cache == "padded" or (reading.cache == "equal" and bool(prompt_mask.all())):
        return CachedDecoder(model, prompts, prompt_mask, masked=reading.cache == "padded")
    return RereadingDecoder(model, prompts, prompt_mask, at_once=1 if reading.rows == "single" else ANY)
