"""The prompts that PPO uses, and their order."""

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
    """-> (prompts, their ids, number dropped as too long). Raises ConfigError if they do not fill one rollout."""
    prompts = dedup_prompts(load_all(config.prompts, Prompt, seed))
    ids = encode_prompts(tokenizer, [prompt.prompt for prompt in prompts])
    kept = [i for i, row in enumerate(ids) if len(row) <= config.max_prompt_length]
    if len(kept) < config.rollout_batch:
        raise ConfigError(
            f"ppo: {len(kept)} of {len(ids)} prompts have at most {config.max_prompt_length} tokens, fewer than one "
            f"batch of {config.rollout_batch}; add prompts, lower ppo.rollout_batch or raise ppo.max_prompt_length"
        )
    return prompts.select(kept), [ids[i] for i in kept], len(ids) - len(kept)


def prompt_batches(n_prompts: int, batch: int, rng: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of prompt indices without end. Each pass is a new permutation without an incomplete last batch."""
    while True:
        order = torch.randperm(n_prompts, generator=rng)
        for start in range(0, n_prompts - batch + 1, batch):
            yield order[start : start + batch].tolist()


def shuffles(n: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield permutations of n episodes without end, each drawn when it is requested."""
    while True:
        yield torch.randperm(n, generator=rng)
