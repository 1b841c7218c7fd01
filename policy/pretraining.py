"""Pretraining text for PPO-ptx: packs documents into rows of ids and computes their next-token loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schema import Document
from policy.errors import ModelError
from policy.maths.logprobs import token_logprobs_from_hidden
from policy.maths.losses import next_token_loss
from policy.precision import reads_model
from policy.reading.states import states_of_sequences
from policy.sampling.rollout import output_head


def pack_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], length: int) -> Tensor:
    """Join documents with EOS and cut them into rows (n, length) of int32 ids; an incomplete last row is dropped."""
    pieces = [torch.empty(0, dtype=torch.int32)]
    texts = (document.text for document in documents)
    while batch := list(islice(texts, 1000)):
        ids = tokenizer(batch, add_special_tokens=False)["input_ids"]
        pieces += [torch.tensor([*row, tokenizer.eos_token_id], dtype=torch.int32) for row in ids]
    stream = torch.cat(pieces)
    n = len(stream) // length
    if n == 0:
        raise ModelError(
            f"the pretraining text has {len(stream)} tokens, less than one row of {length}; give more text."
        )
    return stream[: n * length].view(n, length)


def endless_rows(rows: Tensor, batch: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows without end; every pass visits each row once, in a new random order."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(len(rows), generator=rng)])
        yield rows[waiting[:batch]]
        waiting = waiting[batch:]


Gradients = list[Tensor | None]  # one for each trained parameter, in the model's order


class GradientBalance:
    """Sets PPO-ptx's coefficient to ratio x |PPO gradient| / |text gradient|. Each norm is a moving average over
    optimiser steps, so one unusual minibatch has little effect."""

    def __init__(self, ratio: float, decay: float = 0.9) -> None:
        self.ratio, self.decay = ratio, decay
        self.norms: tuple[float, float] | None = None  # averaged norms (PPO, text); None before the first step

    def take(self, model: torch.nn.Module) -> Gradients:
        """Move PPO's gradient out of the model, so that the text's can be measured separately. Needs memory for one
        more gradient than a fixed coefficient does."""
        taken = [parameter.grad for parameter in trained(model)]
        for parameter in trained(model):
            parameter.grad = None
        return taken

    @torch.no_grad()
    def mix(self, ppo: Gradients, model: torch.nn.Module) -> dict[str, float]:
        """Scale the text's gradient, now in `model`, by the coefficient and add PPO's. Returns the metrics to log."""
        text = [parameter.grad for parameter in trained(model)]
        now = tuple(float(get_total_norm([grad for grad in grads if grad is not None])) for grads in (ppo, text))
        before = self.norms or now
        ppo_norm, text_norm = (self.decay * old + (1 - self.decay) * new for old, new in zip(before, now, strict=True))
        self.norms = ppo_norm, text_norm
        coefficient = self.ratio * ppo_norm / text_norm if text_norm > 0 else 0.0
        for parameter, own, other in zip(trained(model), ppo, text, strict=True):
            if other is not None:
                other.mul_(coefficient)
            parameter.grad = own if other is None else other if own is None else own.add_(other)
        return {
            "policy/pretraining_coef": coefficient,
            "policy/ppo_grad_norm": now[0],
            "policy/pretraining_grad_norm": now[1],
        }


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@reads_model
def pretraining_loss(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy of rows (batch, length), in nats per token (InstructGPT eq. 2, last term)."""
    ids = rows.long().to(model.device)
    lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
    hidden = states_of_sequences(model, ids.flatten(), lengths, torch.zeros_like(lengths), lengths - 1)
    flat = token_logprobs_from_hidden(hidden, output_head(model), ids[:, 1:].flatten())
    return next_token_loss(flat.logprobs.unsqueeze(0), torch.ones_like(flat.logprobs, dtype=torch.bool).unsqueeze(0))
