"""What PPO may take for a reward: reward models, functions on text, penalties on an answer's shape, and sums of them.

All answer one call, `Reward`, with whatever of (prompt, text, ids) they need; `score_rollout` adds their weighted
scores up. To add a kind of reward, write one more small class here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema.records import Message, Prompt
from policy.encoding import encode_answers, encode_prompts
from policy.errors import ModelError, raised
from policy.sampling.rollout import Rollout, as_rollout

SHOWN = 60  # characters of an answer in an error


class Scored(NamedTuple):
    """What a reward says of a batch of answers."""

    scores: Tensor  # (batch,) float32
    watched: Mapping[str, Tensor]  # name -> (batch,) numbers to record beside the scores


class Reward(Protocol):
    """The batch three times over: the prompts asked, the answers as text, both as the policy's ids."""

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored: ...


class Part(NamedTuple):
    """One reward in a weighted sum."""

    name: str
    weight: float
    reward: Reward
    is_penalty: bool  # on an answer's shape, so that it is charged whether or not the answer ended


class RolloutScores(NamedTuple):
    judged: Tensor  # (batch,) weighted sum of the parts that are no penalties
    penalties: Tensor  # (batch,) weighted sum of those that are
    parts: dict[str, Tensor]  # name -> (batch,) each part before its weight, and what it wants watched


@torch.no_grad()
def score_rollout(
    parts: Sequence[Part], prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout
) -> RolloutScores:
    """Every part's scores of a rollout, and their weighted sums."""
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
    """A reward model that reads the policy's ids as they are, `batch_size` rows at a time."""

    read: Callable[[Rollout], Scored]
    batch_size: int
    within: Callable[[], AbstractContextManager[Any]] = nullcontext  # in it, the model is the reward model

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        index = torch.arange(len(rollout.ended), device=rollout.ended.device)
        with self.within():
            read = [self.read(rollout.rows(rows)) for rows in index.split(self.batch_size)]
        watched = {name: torch.cat([rows.watched[name] for rows in read]) for name in read[0].watched}
        return Scored(torch.cat([rows.scores for rows in read]), watched)


@dataclass(frozen=True)
class ReencodedReward:
    """A reward model with another tokenizer or template than the policy's: the prompt's messages and the decoded
    answer cross over as text and are encoded anew."""

    reward: ModelReward
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int  # tokens that the reward model has positions for

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        """Raises ModelError for a conversation that the reward model cannot read whole."""
        encoded = [
            encode_sampled(self.tokenizer, prompt.prompt, text, ended)
            for prompt, text, ended in zip(prompts, texts, rollout.ended.tolist(), strict=True)
        ]
        longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
        if longest > self.max_length:
            raise ModelError(
                f"a prompt with its answer is {longest} tokens to the reward model, which has positions for "
                f"{self.max_length}; lower max_prompt_length or sampling.max_new_tokens."
            )
        pad_id = self.tokenizer.pad_token_id
        crossed = as_rollout([prompt for prompt, _ in encoded], [answer for _, answer in encoded], pad_id, self.device)
        return self.reward(prompts, texts, crossed)


def encode_sampled(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], text: str, ended: bool
) -> tuple[list[int], list[int]]:
    """-> (ids of the prompt, of the answer). Only an answer that ended has its EOS; an empty one is its EOS alone."""
    if not text:
        return encode_prompts(tokenizer, [prompt])[0], [tokenizer.eos_token_id]
    prompt_ids, (answer,) = encode_answers(tokenizer, prompt, [text])
    return prompt_ids, answer if ended or len(answer) == 1 else answer[:-1]


@dataclass(frozen=True)
class FunctionReward:
    """Code that scores text: called with (prompts, answers, seed), it returns one number for each answer.

    The seed comes from the recipe's and from the texts, so that a function which draws gives the same numbers again.
    """

    function: Callable[[list[Prompt], list[str], int], Any]
    path: str  # as the recipe names it
    seed: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        """Raises ModelError where the function fails or gives something else than finite numbers."""
        digest = hashlib.sha256("\0".join([str(self.seed), *texts]).encode()).digest()
        try:
            given = self.function(list(prompts), list(texts), int.from_bytes(digest[:4]))
        except Exception as error:
            raise ModelError(
                f"the reward function '{self.path}' raised {raised(error)}; mend it, or let it score every answer."
            ) from error
        try:
            scores = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the reward function '{self.path}' gave {type(given).__name__} ({str(given)[:SHOWN]}); let it return "
                "a list with one number for each answer."
            ) from error
        if scores.shape != (len(texts),):
            raise ModelError(
                f"the reward function '{self.path}' gave numbers of shape {tuple(scores.shape)} for {len(texts)} "
                "answers; let it return one number for each."
            )
        if not scores.isfinite().all():
            i = int((~scores.isfinite()).nonzero()[0])
            raise ModelError(
                f"the reward function '{self.path}' gave {scores[i].item()} for the answer {texts[i][:SHOWN]!r}; let "
                "it return finite numbers."
            )
        return Scored(scores, {})


@dataclass(frozen=True)
class LengthPenalty:
    """-1 for each token of an answer, EOS included, beyond `free` of them."""

    free: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        return Scored(-(rollout.lengths - self.free).clamp(min=0).float(), {})


@dataclass(frozen=True)
class RepetitionPenalty:
    """Minus the share of an answer's n-grams of tokens that occurred in it before (Welleck et al. 2019, seq-rep-n):
    distinct / all - 1, and 0 where it has no n-gram. EOS is left out."""

    n: int

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Scored:
        lengths = (rollout.lengths - rollout.ended.long()).tolist()
        shares = [self.share(row[:length]) for row, length in zip(rollout.responses.tolist(), lengths, strict=True)]
        return Scored(-torch.tensor(shares), {})

    def share(self, ids: Sequence[int]) -> float:
        grams = [tuple(ids[i : i + self.n]) for i in range(len(ids) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0
