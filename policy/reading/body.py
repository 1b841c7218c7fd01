"""A language model's parts: its body, which turns ids into states, and its own way from states to logits.

Nothing here assumes what an architecture looks like; `policy/reading/ways.py` tries what holds for a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policy.errors import ModelError

CACHE_NAMES = ("past_key_values", "cache_params")  # Mamba's family calls its cache by the second name


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The module below the head, whose output has `last_hidden_state`. Raises ModelError if there is none."""
    named = getattr(model, model.base_model_prefix, None)
    inner = (child for child in model.children() if isinstance(child, PreTrainedModel))
    body = named if isinstance(named, nn.Module) else next(inner, None)
    if body is None:
        raise ModelError(f"{type(model).__name__} has no body that gives hidden states; use another architecture.")
    return body


@cache
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of a forward method's arguments."""
    return frozenset(inspect.signature(forward).parameters)


def call(module: nn.Module, ids: Tensor, **wanted: Any) -> Any:
    """Run `module` on ids (batch, tokens), with those of the arguments that are not None and that it knows.

    A cache is passed as `cache`, under the name that the module has for it."""
    names = _accepted(type(module).forward)
    cache = wanted.pop("cache", None)
    if cache is not None:
        wanted[next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])] = cache
    known = {name: value for name, value in wanted.items() if value is not None and name in names}
    return module(input_ids=ids, **known)


def states(model: PreTrainedModel, ids: Tensor, **wanted: Any) -> Tensor:
    """(batch, tokens) ids -> (batch, tokens, hidden), the body's last states, without a cache."""
    hidden: Tensor = call(body_of(model), ids, use_cache=False, **wanted).last_hidden_state
    return hidden


class _StatesOnly(tuple[Tensor]):
    """A body's output with states and nothing else: no cache, no router logits, whatever it is asked for."""

    def __getattr__(self, name: str) -> Tensor | None:
        return self[0] if name == "last_hidden_state" else None


def logits_of_states(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(n, hidden) states of the body -> (n, vocabulary) logits as the model's own forward pass makes them.

    The body is replaced for this call by one that returns these states, so scales, soft caps and layers between body
    and head take part whatever the architecture calls them. Differentiable."""
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    with replaced_forwards({body_of(model): lambda *_, **__: _StatesOnly((hidden.unsqueeze(0),))}):
        logits: Tensor = call(model, ids, use_cache=False).logits[0]
    return logits


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Context in which these modules have these forward passes; contexts may be nested."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def head_of(model: PreTrainedModel) -> Tensor | nn.Module:
    """The output embedding: a bare weight if it has no bias, since log-probabilities from a weight are cheaper."""
    head: Any = model.get_output_embeddings()
    return head.weight if type(head) is nn.Linear and head.bias is None else head
