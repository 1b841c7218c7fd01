"""Log-probabilities and entropy of given tokens, always at the temperature they were sampled with.

Rollout, reference and update must all divide the logits by the sampling temperature; otherwise the KL and the ratio
compare different distributions (lm-human-preferences `policy.py`). Computed in at least float32 for any model type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


class TokenLogprobs(NamedTuple):
    logprobs: Tensor  # (n,) log-probability of each label, in nats
    entropy: Tensor  # (n,) entropy of the whole distribution there, in nats; no gradient unless requested


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """(..., vocab) logits and (...) labels -> (...) log-probabilities; `logits[t]` predicts `labels[t]`.

    Masked labels must still be ids of the vocabulary (0, not -100): mask the result instead."""
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


@torch.no_grad()
def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(..., vocab) -> (...) entropy in nats of the sampling distribution. No gradient: it is a measurement."""
    # entr(p) is -p log p, and 0 at p = 0; otherwise a token with logit -inf would give NaN.
    return torch.special.entr(_scaled(logits, temperature).softmax(-1)).sum(-1)


def differentiable_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """As `entropy`, with a gradient: d H / d logit = -p (log p + H) / temperature."""
    logprobs = _scaled(logits, temperature).log_softmax(-1)
    # Not entr: its derivative is infinite at p = 0, where a token with logit -inf contributes nothing.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


def token_logprobs_from_hidden(
    hidden: Tensor,
    lm_head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    temperature: float = 1.0,
    chunk: int = 1024,
    entropy_gradient: bool = False,
) -> TokenLogprobs:
    """As `token_logprobs` of `lm_head(hidden)`, but with at most `chunk` rows of logits in memory, also in backward.

    hidden (n, d), of response positions only; labels (n,). Each chunk's logits are recomputed in the backward pass,
    unless the head is frozen; values and gradients equal those without chunks. lm_head: a (vocab, d) weight, or a
    callable if the head is more than a weight (bias, adapter, shards), which takes up to 50 % longer.
    `entropy_gradient`: give the entropy a gradient, which an entropy bonus needs."""
    if isinstance(lm_head, Tensor):
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            # Autocast is on in the forward pass only; the cast here makes the recomputation in backward equal to it.
            hidden, lm_head = (t.to(torch.get_autocast_dtype(device)) for t in (hidden, lm_head))
        if torch.is_grad_enabled() and hidden.requires_grad and not (lm_head.requires_grad or entropy_gradient):
            return TokenLogprobs(*_FrozenHeadLogprobs.apply(hidden, lm_head, labels, temperature, chunk))
        return TokenLogprobs(*_ChunkedLogprobs.apply(hidden, lm_head, labels, temperature, chunk, entropy_gradient))
    pieces = [
        checkpoint(
            _logprobs, rows, lm_head, ids, temperature, entropy_gradient, use_reentrant=False, preserve_rng_state=False
        )
        for rows, ids in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    return TokenLogprobs(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


class _FrozenHeadLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies under a head that does not train.

    A label's gradient by its state is (one-hot of the label - softmax) @ weight / temperature, which needs the logits
    but not the loss. It is computed while they are there, so that the backward pass only scales it: two products with
    the weight in place of three."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, ...]:
        pieces, directions = [], []
        for rows, ids in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            logprobs = _scaled(rows @ weight.T, temperature).log_softmax(-1)
            logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)  # a logit of -inf has p log p = 0, not NaN
            probs = logprobs.exp()
            pieces.append((logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -torch.linalg.vecdot(probs, logprobs)))
            probs.scatter_add_(-1, ids.unsqueeze(-1), torch.full_like(probs[:, :1], -1))
            directions.append(-(probs.to(rows.dtype) @ weight))
        logprobs, entropies = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(torch.cat(directions))
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (directions,) = ctx.saved_tensors
        scaled = directions * (grad / ctx.temperature).unsqueeze(-1)
        return scaled.to(directions.dtype), None, None, None, None


class _ChunkedLogprobs(torch.autograd.Function):
    """d logprob / d logits = (one-hot of the label - softmax) / temperature, chunk by chunk; the entropy's gradient, if
    requested, as in `differentiable_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, chunk: int, entropy_gradient: bool
    ) -> tuple[Tensor, ...]:
        pieces = [
            _logprobs(rows, lambda x: x @ weight.T, ids, temperature)
            for rows, ids in zip(hidden.split(chunk), labels.split(chunk), strict=True)
        ]
        logprobs, entropies = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden, weight, labels)
        ctx.temperature, ctx.chunk, ctx.entropy_gradient = temperature, chunk, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        hidden_grads = []
        # Sum over chunks in at least float32: bfloat16 would round every addition.
        weight_grad = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        pieces = (hidden, labels, grad / ctx.temperature, entropy_grad / ctx.temperature)
        for rows, ids, g, h in zip(*(t.split(ctx.chunk) for t in pieces), strict=True):
            g = g.unsqueeze(-1)
            probs = _scaled(rows @ weight.T, ctx.temperature).softmax(-1)
            bonus = None
            if ctx.entropy_gradient:
                bonus = torch.special.entr(probs)  # -p log p; becomes -h p (log p + H)
                bonus = bonus.sub_(probs * bonus.sum(-1, keepdim=True)).mul_(h.unsqueeze(-1))
            d_logits = probs.mul_(-g).scatter_add_(-1, ids.unsqueeze(-1), g)
            if bonus is not None:
                d_logits += bonus
            d_logits = d_logits.to(rows.dtype)
            if ctx.needs_input_grad[0]:
                hidden_grads.append(d_logits @ weight)
            if weight_grad is not None:
                weight_grad += d_logits.T @ rows
        return (
            torch.cat(hidden_grads) if hidden_grads else None,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None,
            None,
            None,
            None,
        )


def _logprobs(
    hidden: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    labels: Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    logits = lm_head(hidden)
    entropies = differentiable_entropy if entropy_gradient else entropy
    return token_logprobs(logits, labels, temperature), entropies(logits, temperature)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; greedy decoding has no log-probability.")
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return logits if temperature == 1 else logits / temperature
