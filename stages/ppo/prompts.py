"""Which prompts PPO asks, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema import Prompt, Records, dedup_prompts, load_all
from policy.encoding import encode_prompts
from stages.errors import ConfigError
from stages.ppo.settings import PpoConfig


def load_prompts(
    config: PpoConfig, seed: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Records[Prompt], list[list[int]], int]:
    """-> (prompts, their ids, how many were dropped as too long)."""
    prompts = dedup_prompts(load_all(config.prompts, Prompt, seed))
    ids = encode_prompts(tokenizer, [prompt.prompt for prompt in prompts])
    kept = [i for i, row in enumerate(ids) if len(row) <= config.max_prompt_length]
    if len(kept) < config.rollout_batch:
        raise ConfigError(
            f"ppo: {len(kept)} prompts (of {len(ids)}, the others longer than {config.max_prompt_length} tokens) are "
            f"fewer than one batch of {config.rollout_batch}; give more prompts or a smaller ppo.rollout_batch"
        )
    return prompts.select(kept), [ids[i] for i in kept], len(ids) - len(kept)


def prompt_batches(n_prompts: int, batch: int, rng: torch.Generator) -> Iterator[list[int]]:
    """Indices of prompts, drawn without replacement; a pass ends where no whole batch is left, and the next is
    reshuffled."""
    while True:
        order = torch.randperm(n_prompts, generator=rng)
        for start in range(0, n_prompts - batch + 1, batch):
            yield order[start : start + batch].tolist()


def shuffles(n: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Permutations of n episodes without end, each drawn when it is asked for."""
    while True:
        yield torch.randperm(n, generator=rng)
