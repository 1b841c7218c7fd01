"""Used by several stages: prompts that no stage was trained on, sampled answers, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schema import Prompt
from policy.encoding import decode_responses, encode_prompts
from policy.errors import ModelError
from policy.language_model import LanguageModel
from policy.sampling.engines import RolloutEngine
from policy.sampling.rollout import Rollout, collect_rollout
from policy.special_tokens import stop_ids
from reward.sources import Part, RolloutScores, score_rollout
from stages.job import prompt_hash, read_seen_prompts
from stages.judging import load_function
from stages.settings import SamplingConfig


class Unseen(NamedTuple):
    """Prompts that no checkpoint was trained on, with their ids, and the number of prompts left out by reason."""

    prompts: list[Prompt]
    ids: list[list[int]]
    trained_on: int
    too_long: int

    def first(self, n: int) -> Unseen:
        return self._replace(prompts=self.prompts[:n], ids=self.ids[:n])


class Answered(NamedTuple):
    """One batch of answers; texts and scores are in the order of the prompts."""

    prompts: Sequence[Prompt]
    rollout: Rollout
    texts: list[str]
    scores: RolloutScores


def unseen_prompts(
    records: Sequence[Prompt], checkpoints: Iterable[Path], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Unseen:
    """The prompts that none of the checkpoints was trained on and that have at most `max_length` tokens."""
    seen = read_seen_prompts(checkpoints)
    fresh = [record for record in records if prompt_hash(record) not in seen]
    encoded = encode_prompts(tokenizer, [record.prompt for record in fresh])
    kept = [(record, row) for record, row in zip(fresh, encoded, strict=True) if len(row) <= max_length]
    prompts, ids = [record for record, _ in kept], [row for _, row in kept]
    return Unseen(prompts, ids, len(records) - len(fresh), len(fresh) - len(kept))


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    rng: torch.Generator,
    answers_each: int = 1,
) -> Rollout:
    """Sample answers to prompts given as ids, with a recipe's settings."""
    engine: RolloutEngine = load_function(sampling.engine, "sampling.engine") if sampling.engine else collect_rollout
    rollout = engine(
        model,
        ids,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        batch_size=sampling.batch_size,
        stop_ids=stop_ids(tokenizer),
        pad_id=tokenizer.pad_token_id,
        rng=rng,
        answers_each=answers_each,
    )
    check_ids(rollout, tokenizer, sampling.engine)
    return rollout


def check_ids(rollout: Rollout, tokenizer: PreTrainedTokenizerBase, engine: str | None) -> None:
    """Raise ModelError if an engine sampled ids that the tokenizer has no token for: the policy gives them no
    probability. Our own loop never draws one."""
    if engine is None:
        return
    ids = rollout.responses[rollout.response_mask].unique()
    unknown = sorted(set(ids.tolist()).difference(tokenizer.get_vocab().values()))
    if unknown:
        raise ModelError(
            f"sampling.engine '{engine}' returned {len(unknown)} ids that the tokenizer has no token for, such as "
            f"{unknown[0]}; let it sample only ids of the tokenizer's vocabulary."
        )


@torch.no_grad()
def scored_answers(
    language_model: LanguageModel,
    rewards: Sequence[Part],
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[Answered]:
    """Yield one answer to each prompt, a batch at a time. Give models that are compared the same seed."""
    model, tokenizer = language_model
    model.eval()
    rng = torch.Generator(model.device).manual_seed(seed)
    for start in range(0, len(ids), sampling.batch_size):
        batch = slice(start, start + sampling.batch_size)
        rollout = sample_answers(model, tokenizer, ids[batch], sampling, rng)
        texts = decode_responses(tokenizer, rollout.responses, rollout.lengths)
        yield Answered(prompts[batch], rollout, texts, score_rollout(rewards, prompts[batch], texts, rollout))
