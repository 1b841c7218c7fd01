"""Reads prompts and then one token per row at a time, for sampling and for the trials of policy/reading/ways.py."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from policy.encoding import Padded
from policy.maths.masks import position_ids
from policy.reading.body import body_of, call
from policy.reading.packing import equal_groups
from policy.sampling.growing_cache import growing_cache


class Decoder(Protocol):
    """Rows of text that grow by a token at a time."""

    logits: Tensor  # (rows, vocabulary) after each row's last token

    def select(self, rows: Tensor) -> None:
        """Keep these rows (n,), in this order; a row may be repeated."""

    def append(self, tokens: Tensor) -> None:
        """Add one token to each row (rows,) and compute the next logits."""


class CachedDecoder:
    """Reads every token once and keeps its keys, values and states."""

    def __init__(self, model: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, masked: bool = True) -> None:
        """prompts (rows, prompt) ids, padded on the left; prompt_mask True on real tokens. `masked` false: the model is
        given no mask, since some with recurrent states read one wrongly; then no prompt may be padded."""
        self.model, self.cache, self.masked = model, growing_cache(model.config), masked
        self.mask, self.positions = prompt_mask.long(), position_ids(prompt_mask)
        self._read(prompts)

    def _read(self, ids: Tensor) -> None:
        self.logits: Tensor = call(
            self.model,
            ids,
            attention_mask=self.mask if self.masked else None,
            position_ids=self.positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.logits, self.mask, self.positions = self.logits[rows], self.mask[rows], self.positions[rows]

    def append(self, tokens: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        self._read(tokens.unsqueeze(1))


def states_after_prompts(model: PreTrainedModel, prompts: Padded, answers: Padded, rows: Tensor) -> Tensor:
    """(answers, tokens, hidden) the body's states that predict each answer's tokens: prompts (padded on the left) are
    read once into a cache, then all but the last token of each answer (padded on the right) at once. `rows` (answers,)
    is each answer's prompt."""
    body, cache = body_of(model), DynamicCache(config=model.config)
    hidden: Tensor = call(
        body,
        prompts.ids,
        attention_mask=prompts.mask.long(),
        position_ids=position_ids(prompts.mask),
        cache=cache,
        use_cache=True,
    ).last_hidden_state[rows, -1:]  # the state of a prompt's last token predicts an answer's first
    if answers.ids.shape[1] == 1:
        return hidden
    cache.reorder_cache(rows)
    seen = torch.cat([prompts.mask[rows], answers.mask[:, :-1]], dim=1)
    more: Tensor = call(
        body,
        answers.ids[:, :-1],
        attention_mask=seen.long(),
        position_ids=position_ids(seen)[:, prompts.ids.shape[1] :],
        cache=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([hidden, more], dim=1)


class RereadingDecoder:
    """Reads the whole text again for every token, texts of equal length together: slow, and exact for any model."""

    def __init__(self, model: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, at_once: int) -> None:
        """As for CachedDecoder; at most `at_once` texts share a forward pass."""
        self.model, self.at_once = model, at_once
        self.texts = [row[real] for row, real in zip(prompts, prompt_mask, strict=True)]
        self._read()

    def _read(self) -> None:
        found: list[Tensor] = list(self.texts)
        for group in equal_groups([len(text) for text in self.texts], self.at_once):
            ids = torch.stack([self.texts[i] for i in group])
            for i, logits in zip(group, call(self.model, ids, use_cache=False, logits_to_keep=1).logits, strict=True):
                found[i] = logits[-1]
        self.logits: Tensor = torch.stack(found)

    def select(self, rows: Tensor) -> None:
        self.texts, self.logits = [self.texts[i] for i in rows.tolist()], self.logits[rows]

    def append(self, tokens: Tensor) -> None:
        self.texts = [torch.cat([text, token]) for text, token in zip(self.texts, tokens.split(1), strict=True)]
        self._read()
