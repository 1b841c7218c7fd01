"""Watches PPO's iterations for what makes its result doubtful, and says it once, when it is first seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from policy.special_tokens import stop_ids
from stages.doubts import all_empty, few_ends, rows_lost, same_score, special_tokens_unseen, warn
from stages.ppo.experience import Experience
from stages.ppo.settings import PpoConfig
from stages.tracking import Tracker


class Doubts:
    """Remembers what was said already."""

    def __init__(self, config: PpoConfig, tracker: Tracker, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tracker = config, tracker
        self.said: set[str] = set()
        unseen = set(tokenizer.all_special_ids).difference(stop_ids(tokenizer))
        self.unseen = torch.tensor(sorted(unseen), dtype=torch.long)  # special tokens that a text does not show
        self.reads_text = config.monitor is not None or any(
            part.function is not None or part.text_crosses_over for part in config.rewards
        )

    def seen(self, iteration: int, experience: Experience, metrics: Mapping[str, float], texts: Sequence[str]) -> None:
        """Warn of what this iteration shows."""
        where = f"ppo (iteration {iteration})"
        found = {"same": same_score(where, experience.scores.tolist()), "empty": all_empty(where, texts)}
        if iteration == 1:
            new_tokens = self.config.sampling.max_new_tokens
            found["ends"] = few_ends(where, metrics["objective/eos_rate"], new_tokens, "ppo.sampling")
        if self.reads_text and len(self.unseen):
            rollout = experience.rollout
            marked = torch.isin(rollout.responses, self.unseen.to(rollout.responses.device)) & rollout.response_mask
            found["special"] = special_tokens_unseen(where, float(marked.any(1).float().mean()))
        for what, doubt in found.items():
            if doubt is not None and what not in self.said:
                self.said.add(what)
                warn(self.tracker, doubt)


def lost_prompts(config: PpoConfig, account: Mapping[str, Any]) -> str | None:
    """A warning if many prompts are left out, or None. `account`: the prompts' counts for the manifest."""
    dropped = account["dropped"]
    fixes = {"too long": f"raise ppo.max_prompt_length (here {config.max_prompt_length})"}
    return rows_lost("ppo.prompts", account["records"] + sum(dropped.values()), dropped, fixes)
