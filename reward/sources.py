"""Rewards for PPO: reward models, functions on text, penalties on an answer's form, and weighted sums of them.

All have the same call signature, `Reward`, and use whichever of (prompt, text, ids) they need; `score_rollout` adds up
their weighted scores. To add a kind of reward, add a small class here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema.messages import describe
from data_schema.records import Message, Prompt
from policy.encoding import encode_answers, encode_prompts
from policy.errors import ModelError, raised
from policy.sampling.rollout import Rollout, as_rollout

SHOWN = 60  # characters of an answer in an error


class Scored(NamedTuple):
    """A reward's scores for a batch of answers."""

    scores: Tensor  # (batch,) float32
    watched: Mapping[str, Tensor]  # name -> (batch,) values to log with the scores


class Reward(Protocol):
    """Scores a batch, given in three forms: the prompts, the answers as text, and both as the policy's ids."""

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored: ...


class Part(NamedTuple):
    """One reward in a weighted sum."""

    name: str
    weight: float
    reward: Reward
    is_penalty: bool  # on an answer's form, so that it applies whether or not the answer ended


class RolloutScores(NamedTuple):
    judged: Tensor  # (batch,) weighted sum of the parts that are not penalties
    penalties: Tensor  # (batch,) weighted sum of the penalties
    parts: dict[str, Tensor]  # name -> (batch,) scores of each part before weighting, and its watched values


@torch.no_grad()
def score_rollout(
    parts: Sequence[Part], prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout
) -> RolloutScores:
    """Score a rollout with every part, and compute the weighted sums."""
    zero = torch.zeros(len(texts), device=rollout.ended.device)
    sums = {False: zero, True: zero}
    found: dict[str, Tensor] = {}
    for part in parts:
        scored = part.reward(prompts, texts, rollout)
        scores = scored.scores.to(zero)
        sums[part.is_penalty] = sums[part.is_penalty] + part.weight * scores
        found[part.name] = scores
        found |= {f"{part.name}_{name}": values for name, values in scored.watched.items()}
    return RolloutScores(sums[False], sums[True], found)


@dataclass(frozen=True)
class ModelReward:
    """A reward model that reads the policy's ids directly, `batch_size` rows at a time."""

    read: Callable[[Rollout], Scored]
    batch_size: int
    within: Callable[[], AbstractContextManager[Any]] = nullcontext  # context in which the model is the reward model

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        index = torch.arange(len(rollout.ended), device=rollout.ended.device)
        with self.within():
            read = [self.read(rollout.rows(rows)) for rows in index.split(self.batch_size)]
        watched = {name: torch.cat([rows.watched[name] for rows in read]) for name in read[0].watched}
        return Scored(torch.cat([rows.scores for rows in read]), watched)


@dataclass(frozen=True)
class ReencodedReward:
    """A reward model whose tokenizer or template differs from the policy's: the prompt's messages and the decoded
    answer are passed as text and encoded again."""

    reward: ModelReward
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int  # number of tokens that the reward model has positions for

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        """Raises ModelError for a conversation that is too long for the reward model."""
        encoded = [
            encode_sampled(self.tokenizer, prompt.prompt, text, ended)
            for prompt, text, ended in zip(prompts, texts, rollout.ended.tolist(), strict=True)
        ]
        longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
        if longest > self.max_length:
            raise ModelError(
                f"a prompt with its answer is {longest} tokens for the reward model, which has positions for "
                f"{self.max_length}; lower max_prompt_length or sampling.max_new_tokens."
            )
        pad_id = self.tokenizer.pad_token_id
        crossed = as_rollout([prompt for prompt, _ in encoded], [answer for _, answer in encoded], pad_id, self.device)
        return self.reward(prompts, texts, crossed)


def encode_sampled(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], text: str, ended: bool
) -> tuple[list[int], list[int]]:
    """-> (ids of the prompt, ids of the answer). Only a complete answer ends with EOS; an empty one is just EOS."""
    if not text:
        return encode_prompts(tokenizer, [prompt])[0], [tokenizer.eos_token_id]
    prompt_ids, (answer,) = encode_answers(tokenizer, prompt, [text])
    return prompt_ids, answer if ended or len(answer) == 1 else answer[:-1]


@dataclass(frozen=True)
class FunctionReward:
    """A function that scores text: called with (prompts, answers, seed), it returns one number for each answer.

    The seed is derived from the recipe's seed and the texts, so a function with randomness is reproducible."""

    function: Callable[[list[Prompt], list[str], int], Any]
    path: str  # its name in the recipe
    seed: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        """Raises ModelError if the function fails or does not return finite numbers."""
        digest = hashlib.sha256("\0".join([str(self.seed), *texts]).encode()).digest()
        try:
            given = self.function(list(prompts), list(texts), int.from_bytes(digest[:4]))
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"the reward function '{self.path}' raised {raised(error)}; fix it so that it scores every answer."
            ) from error
        try:
            scores = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the reward function '{self.path}' returned {_returned(given)}; return a list with one number for "
                "each answer."
            ) from error
        if scores.shape != (len(texts),):
            raise ModelError(
                f"the reward function '{self.path}' returned numbers of shape {tuple(scores.shape)} for {len(texts)} "
                "answers; return one number for each."
            )
        if not scores.isfinite().all():
            i = int((~scores.isfinite()).nonzero()[0])
            raise ModelError(
                f"the reward function '{self.path}' returned {scores[i].item()} for the answer {texts[i][:SHOWN]!r}; "
                "return finite numbers."
            )
        return Scored(scores, {})


def _returned(given: Any) -> str:
    """What a reward function returned in place of numbers, in words."""
    if given is None:
        return "nothing"
    if not isinstance(given, list | tuple):
        return "something that is not a list"
    item = next((item for item in given if isinstance(item, bool) or not isinstance(item, int | float)), given)
    return f"a list with {describe(item)} in it"


@dataclass(frozen=True)
class LengthPenalty:
    """-1 for each token of an answer, EOS included, beyond `free` of them."""

    free: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        return Scored(-(rollout.lengths - self.free).clamp(min=0).float(), {})


@dataclass(frozen=True)
class RepetitionPenalty:
    """Minus the share of an answer's token n-grams that occurred earlier in it (Welleck et al. 2019, seq-rep-n):
    distinct / all - 1, or 0 if it has no n-gram. EOS is left out."""

    n: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        lengths = (rollout.lengths - rollout.ended.long()).tolist()
        shares = [self.share(row[:length]) for row, length in zip(rollout.responses.tolist(), lengths, strict=True)]
        return Scored(-torch.tensor(shares), {})

    def share(self, ids: Sequence[int]) -> float:
        grams = [tuple(ids[i : i + self.n]) for i in range(len(ids) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class OpeningPenalty:
    """Minus the share of the batch's other answers that begin with the same `n` tokens; a shorter answer is its own
    opening. It falls on what an answer has in common with answers to other prompts, which a reward model that likes one
    phrase whatever the prompt cannot see."""

    n: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        lengths = rollout.lengths.clamp(max=self.n).tolist()
        openings = [tuple(row[:length]) for row, length in zip(rollout.responses.tolist(), lengths, strict=True)]
        alike, others = Counter(openings), max(1, len(openings) - 1)
        return Scored(-torch.tensor([(alike[opening] - 1) / others for opening in openings]), {})
