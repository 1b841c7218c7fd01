"""Rollouts: prompts with sampled responses, and forward passes of a model over them.

Rows are [prompt padded on the left | response padded on the right], so that every response begins in the same column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.encoding import pad
from policy.maths.logprobs import TokenLogprobs, token_logprobs_from_hidden
from policy.maths.masks import mask_from_lengths
from policy.memory.heap import give_back_free_memory
from policy.precision import cast_frozen, reads_model
from policy.reading.body import head_of, logits_of_states
from policy.reading.kept_states import KeptStates
from policy.reading.packing import equal_groups
from policy.reading.states import states_of_sequences
from policy.reading.trunk import WHOLE, Part, first_layer_of
from policy.reading.ways import reading_of
from policy.sampling.generate import sample_responses
from policy.special_tokens import hidden_ids, mask_ids


class Rollout(NamedTuple):
    """Prompts and responses; all tensors (batch, ...). `response_mask` marks a response's real tokens, the
    stop token included."""

    prompts: Tensor  # (batch, prompt) ids
    prompt_mask: Tensor  # (batch, prompt) True on real tokens
    responses: Tensor  # (batch, response) ids
    response_mask: Tensor  # (batch, response) True on real tokens
    ended: Tensor  # (batch,) True if the policy ended the answer with a stop token
    below: KeptStates | None = None  # the texts' states in a frozen trunk, which models above it go on from

    @property
    def lengths(self) -> Tensor:
        """(batch,) number of real tokens of each response."""
        return self.response_mask.sum(1)

    def rows(self, index: Tensor) -> Rollout:
        """Select rows and drop the columns that are padding in all of them."""
        prompt_width = int(self.prompt_mask[index].sum(1).max())
        response_width = int(self.response_mask[index].sum(1).max())
        return Rollout(
            self.prompts[index, -prompt_width:],
            self.prompt_mask[index, -prompt_width:],
            self.responses[index, :response_width],
            self.response_mask[index, :response_width],
            self.ended[index],
            None if self.below is None else self.below.rows(index),
        )


def as_rollout(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Rollout:
    """Build a rollout from given prompts and responses as ids; `ended` is True for all."""
    prompt_ids, prompt_mask = pad(prompts, pad_id, "left")
    response_ids, response_mask = pad(responses, pad_id, "right")
    ended = torch.ones(len(prompts), dtype=torch.bool)
    prompt_ids, prompt_mask, response_ids, response_mask = (
        part.to(device) for part in (prompt_ids, prompt_mask, response_ids, response_mask)
    )
    return Rollout(prompt_ids, prompt_mask, response_ids, response_mask, ended.to(device))


def collect_rollout(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    stop_ids: Sequence[int],
    pad_id: int,
    rng: torch.Generator,
    answers_each: int = 1,
) -> Rollout:
    """Sample answers to prompts given as ids, about `batch_size` answers at a time. Rows keep the order of the prompts;
    a prompt's `answers_each` answers follow each other."""
    device = model.device
    prompt_ids, prompt_mask = (part.to(device) for part in pad(prompts, pad_id, "left"))
    # Prompts of similar length share a batch, since each batch takes as long as its longest prompt.
    order = prompt_mask.sum(1).argsort(stable=True)
    n = len(prompts) * answers_each
    tokens = torch.full((n, max_new_tokens), pad_id, device=device)
    lengths = torch.zeros(n, dtype=torch.long, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    at_once = max(1, batch_size // answers_each)
    batches = order.split(at_once)
    if reading_of(model, prompt_ids.shape[1] + max_new_tokens).cache == "equal":
        groups = equal_groups(prompt_mask.sum(1).tolist(), at_once)
        batches = tuple(torch.tensor(group, device=device) for group in groups)
    with cast_frozen(model):
        for asked in batches:
            width = int(prompt_mask[asked].sum(1).max())
            answers = sample_responses(
                model,
                prompt_ids[asked, -width:],
                prompt_mask[asked, -width:],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                stop_ids=stop_ids,
                pad_id=pad_id,
                rng=rng,
                answers_each=answers_each,
            )
            rows = (asked[:, None] * answers_each + torch.arange(answers_each, device=device)).flatten()
            tokens[rows, : answers.tokens.shape[1]] = answers.tokens
            lengths[rows], ended[rows] = answers.lengths, answers.ended
    if answers_each > 1:
        prompt_ids, prompt_mask = (part.repeat_interleave(answers_each, dim=0) for part in (prompt_ids, prompt_mask))
    width = int(lengths.max())
    return Rollout(prompt_ids, prompt_mask, tokens[:, :width], mask_from_lengths(lengths, width), ended)


def states_between(model: PreTrainedModel, rollout: Rollout, start: Tensor, stop: Tensor) -> Tensor:
    """Return (sum of stop - start, hidden): the body's last states at tokens [start, stop) of each row, row after row.

    Tokens count from the prompt's first real one; start and stop are (batch,). Padding is removed before reading."""
    give_back_free_memory(model.device)
    ids, lengths = _texts(rollout)
    part, first = WHOLE, first_layer_of(model)
    if first is not None and rollout.below is not None and first in rollout.below.flat:
        part = Part(first, rollout.below.of(first, model.device, model.dtype))
    return states_of_sequences(model, ids, lengths, start, stop, part=part)


def _texts(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """((tokens,) ids of all texts without padding, (batch,) their lengths)."""
    mask = torch.cat([rollout.prompt_mask, rollout.response_mask], dim=1)
    return torch.cat([rollout.prompts, rollout.responses], dim=1)[mask], mask.sum(1)


@torch.no_grad()
def read_below(model: PreTrainedModel, rollout: Rollout, rows: Tensor, into: KeptStates) -> None:
    """Read these rows (n,) of a rollout in the frozen layers of `model`, and keep the states that enter the layers of
    `into`, which has room for all rows of the rollout."""
    layers = tuple(sorted(into.flat))
    ids, lengths = _texts(rollout.rows(rows))
    part = Part(taps=layers)
    found = states_of_sequences(model, ids, lengths, torch.zeros_like(lengths), lengths, part=part)
    kept = into.rows(rows)
    for layer, states in zip(layers, found.chunk(len(layers), dim=-1), strict=True):
        kept.put(layer, states)


def output_head(model: PreTrainedModel) -> Tensor | Callable[[Tensor], Tensor]:
    """The projection to logits, as a bare weight if it has no bias: log-probabilities from a weight are cheaper.

    Ids without a token have no probability: rows at the end are cut off, others get the logit -inf."""
    whole = reading_of(model, longest=0).logits == "own forward"
    head = partial(logits_of_states, model) if whole else head_of(model)
    hidden = hidden_ids(model)
    if not hidden:
        return head
    if isinstance(head, Tensor):
        if hidden[0] + len(hidden) == len(head):
            return head[: hidden[0]]
        head = partial(torch.nn.functional.linear, weight=head)
    ids = torch.tensor(hidden, device=model.device)
    return lambda states: mask_ids(head(states), ids)


@reads_model
def response_logprobs(
    model: PreTrainedModel, rollout: Rollout, temperature: float, entropy_gradient: bool = False
) -> TokenLogprobs:
    """Log-probability and entropy of response tokens at the sampling temperature, both (batch, response), padding 0.

    Logits are computed for real response tokens only, a chunk at a time: never (batch, time, vocabulary)."""
    prompt_lengths = rollout.prompt_mask.sum(1)
    # The state of the last prompt token predicts the first response token, and so on.
    hidden = states_between(model, rollout, prompt_lengths - 1, prompt_lengths - 1 + rollout.lengths)
    labels = rollout.responses[rollout.response_mask]
    flat = token_logprobs_from_hidden(
        hidden, output_head(model), labels, temperature, entropy_gradient=entropy_gradient
    )
    return TokenLogprobs(*(unflatten(part, rollout.response_mask) for part in flat))


def unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """Put (real tokens,) values back into (batch, response), padding 0; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
