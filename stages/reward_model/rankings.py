"""Reads the comparisons of the reward-model stage, divides them, and encodes them as rankings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_schema import Comparison, Records, load_all, read_records
from policy.encoding import encode_answers
from policy.language_model import load_config, positions
from reward.ranking_loss import ranked_pairs
from stages.comparisons.stage import HELD_OUT_FILE, TRAIN_FILE
from stages.doubts import rows_lost, warn
from stages.errors import ConfigError
from stages.job import Job, data_account, halves, keep_back, write_seen_prompts
from stages.reward_model.second import SECOND
from stages.reward_model.settings import LabelConfig, RewardModelConfig
from stages.reward_model.trainer import Ranking, merge_labelers

logger = logging.getLogger("triptych.reward_model")


class Rankings(NamedTuple):
    """The stage's comparisons, encoded. No prompt is in two of these parts."""

    train: list[Ranking]
    held_out: list[Ranking]
    second: list[Ranking]  # what the second model is trained on; empty without `second_half`


def load_rankings(
    config: RewardModelConfig, job: Job, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rankings, dict[str, Any]]:
    """-> (rankings, counts for the manifest). Rankings whose answers all tie, or which are too long, are dropped and
    counted. Also writes the hashes of the prompts that each model is trained on."""
    train: Sequence[Comparison]
    held_out: Sequence[Comparison]
    if config.data:
        records = load_all(config.data, Comparison, job.seed)
        train, held_out = keep_back(records, config.held_out, job.seed, "reward_model.held_out")
        account = data_account(records)
    else:
        collected = job.parents["comparisons"]
        train = list(read_records(collected / TRAIN_FILE, Comparison))
        held_out_file = collected / HELD_OUT_FILE
        held_out = list(read_records(held_out_file, Comparison)) if held_out_file.exists() else []
        account = {"format": "records", "records": len(train) + len(held_out), "dropped": {}}
    dropped = account["dropped"]
    total = len(train) + len(held_out) + sum(dropped.values())
    longest = longest_text(config, load_config(job.parents["sft"]))
    if config.max_length > longest:
        logger.warning("reward_model: max_length is %d, but the model has positions for %d", config.max_length, longest)
    write_seen_prompts(job.output, train)
    second: Sequence[Comparison] = []
    if config.second_half:
        whole = train if isinstance(train, Records) else Records.of(Comparison, train)
        train, second = halves(whole, job.seed, "reward_model.second_half")
        write_seen_prompts(job.output / SECOND, second)
    parts = []
    for part in (train, held_out, second):
        kept = []
        for comparison in part:
            prompt, responses = encode_answers(tokenizer, comparison.prompt, comparison.responses)
            if not ranked_pairs(comparison.ranks):
                dropped["all answers tie"] = dropped.get("all answers tie", 0) + 1
            elif len(prompt) + max(map(len, responses)) > longest:
                dropped["too long"] = dropped.get("too long", 0) + 1
            else:
                kept.append(Ranking(prompt, responses, comparison.ranks, comparison.margin))
        parts.append(kept)
    if dropped:
        logger.warning(
            "reward_model: dropped %s", ", ".join(f"{count} ({reason})" for reason, count in dropped.items())
        )
    fixes = {
        "too long": f"raise reward_model.max_length (here {longest} tokens), up to the model's context",
        "all answers tie": "give comparisons with a preference",
    }
    warn(job.tracker, rows_lost("reward_model.data" if config.data else "reward_model", total, dropped, fixes))
    rankings = Rankings(*parts)
    labelled = {"train": prepare_labels(rankings.train, config.labels)}
    if config.second_half:
        labelled["second"] = prepare_labels(rankings.second, config.labels)
    return rankings._replace(**labelled), {"comparisons": account}


def longest_text(config: RewardModelConfig, model: PreTrainedConfig) -> int:
    """Maximum length of prompt with answer, in tokens: max_length, or the model's context if that is shorter."""
    return min(config.max_length, positions(model))


def prepare_labels(train: list[Ranking], labels: LabelConfig) -> list[Ranking]:
    """The training rankings as the loss reads them: merged over labelers if the recipe asks for it."""
    if labels.margins and not any(ranking.margin for ranking in train):
        raise ConfigError("reward_model.labels.margins is set, but no comparison has a margin; leave it out")
    if not labels.merge_labelers:
        return train
    merged = merge_labelers(train)
    logger.info("reward_model: merged %d comparisons into %d", len(train), len(merged))
    return merged


def with_mismatched(train: Sequence[Ranking], longest: int, seed: int) -> list[Ranking]:
    """Add to each ranking the best answer of another prompt, ranked with its own worst answers: only its own best ones
    are then preferred to it. A prompt with which no such answer has at most `longest` tokens gets none.

    Raises ConfigError if no prompt gets one."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    changed = list(train)
    for place, i in enumerate(order):
        own = train[i]
        others = (train[order[(place + step) % len(order)]] for step in range(1, len(order)))
        answers = (best_answer(other) for other in others if other.prompt != own.prompt)
        answer = next((each for each in answers if len(own.prompt) + len(each) <= longest), None)
        if answer is not None:
            votes = tuple((*given, max(given)) for given in own.votes)
            ranks = (*own.ranks, max(own.ranks))
            changed[i] = own._replace(responses=[*own.responses, answer], ranks=ranks, votes=votes)
    if changed == list(train):
        raise ConfigError(
            "reward_model.mismatched_answers needs another prompt's answer that fits, but no prompt has one; give "
            "comparisons of more prompts, raise max_length, or leave it out"
        )
    return changed


def best_answer(ranking: Ranking) -> list[int]:
    return ranking.responses[ranking.ranks.index(min(ranking.ranks))]
