"""Selects one of SFT's checkpoints, between reward model and PPO (InstructGPT C.1).

Each candidate answers the same prompts, which SFT was not trained on. The one whose answers the reward model scores
highest is published again; PPO starts from it and uses it as reference. The reward model has to exist first, so it is
trained from SFT's last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_schema import Prompt, Records, dedup_prompts, load_all, read_records
from policy.language_model import choose_device, load_language_model, load_tokenizer
from reward.sources import Part
from stages.answering import Unseen, scored_answers, unseen_prompts
from stages.doubts import ENDED, few_ends, rows_lost, same_score, warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account, read_seen_prompts, write_seen_prompts
from stages.ppo.reward_settings import RewardPart
from stages.ppo.rewards import Reader, load_rewards
from stages.progress import progress
from stages.select.settings import SelectConfig
from stages.sft.candidates import PROMPTS, copy_model, read_index


class Answers(NamedTuple):
    """One candidate's answers to all prompts, as tensors (prompts,) on the CPU."""

    scores: Tensor  # by the reward model, normalised
    lengths: Tensor  # tokens, EOS included
    ended: Tensor


def run(config: SelectConfig, job: Job) -> StageResult:
    """Score every candidate; the output is the checkpoint of the best one, or the earliest of several equal ones."""
    device = choose_device(config.device)
    sft = job.parents["sft"]
    candidates = read_index(sft)
    if not candidates:
        raise ConfigError(f"the SFT checkpoint '{sft}' has no candidates; run sft again with sft.select: reward_model")
    asked, data = choosing_prompts(config, job)
    reader = Reader(load_tokenizer(sft), sft, device, config.sampling.batch_size, job.seed)
    rewards = load_rewards([RewardPart()], job.parents, reader)
    answered = {
        step: answer(directory, rewards, asked, config, job.seed, device)
        for step, directory in progress(candidates.items(), desc="select", unit="candidate")
    }
    last = answered[max(answered)]
    if all(answers.ended.float().mean() < ENDED for answers in answered.values()):
        rate = max(float(answers.ended.float().mean()) for answers in answered.values())
        warn(job.tracker, few_ends("select", rate, config.sampling.max_new_tokens, "select.sampling"))
    warn(job.tracker, same_score("select", torch.cat([answers.scores for answers in answered.values()]).tolist()))
    rows = [describe(step, answers, last) for step, answers in answered.items()]
    best = max(rows, key=lambda row: row["reward_mean"])
    selected = int(best["step"])
    for row in rows:
        shown = {f"select/{name}": value for name, value in row.items() if name != "step"}
        job.tracker.log(shown, step=int(row["step"]))
    columns = ["candidate", *list(rows[0])[1:]]  # not "step": every row of a table has that column already
    job.tracker.table("candidates", columns, [list(row.values()) for row in rows], step=max(answered))
    copy_model(candidates[selected], job.output)
    # The evaluation must not use prompts that the checkpoint was selected with.
    write_seen_prompts(job.output, asked.prompts, read_seen_prompts([sft]))
    return StageResult({"selected_step": selected, **best, "candidates": rows}, data)


def choosing_prompts(config: SelectConfig, job: Job) -> tuple[Unseen, dict[str, Any]]:
    """-> (the first n_prompts that SFT was not trained on and that are short enough, counts for the manifest)."""
    sft = job.parents["sft"]
    records: Records[Prompt] | list[Prompt]
    if config.prompts:
        records = dedup_prompts(load_all(config.prompts, Prompt, job.seed))
        account = data_account(records)
    else:
        records = list(read_records(sft / PROMPTS, Prompt))
        account = {"source": "kept back by sft", "records": len(records), "dropped": {}}
    unseen = unseen_prompts(records, [sft], load_tokenizer(sft), config.max_prompt_length)
    dropped = {"trained on": unseen.trained_on, "too long": unseen.too_long}
    account["dropped"] |= {reason: count for reason, count in dropped.items() if count}
    if len(unseen.prompts) < 2:
        raise ConfigError(
            f"select: {len(unseen.prompts)} of {len(records)} prompts are left ({unseen.trained_on} were "
            f"trained on, {unseen.too_long} are longer than {config.max_prompt_length} tokens); raise "
            "sft.held_out, or set select.prompts"
        )
    fixes = {
        "too long": f"raise select.max_prompt_length (here {config.max_prompt_length})",
        "trained on": "give select.prompts that SFT was not trained on",
    }
    warn(job.tracker, rows_lost("select.prompts", len(records), dropped, fixes))
    used = unseen.first(config.n_prompts)
    return used, {"prompts": {**account, "used": len(used.prompts)}}


def answer(
    directory: Path, rewards: Sequence[Part], asked: Unseen, config: SelectConfig, seed: int, device: torch.device
) -> Answers:
    """Sample one answer to each prompt and score it; every candidate samples from the same seed."""
    candidate = load_language_model(directory, device)
    found = [
        Answers(batch.scores.judged.cpu(), batch.rollout.lengths.cpu(), batch.rollout.ended.cpu())
        for batch in scored_answers(candidate, rewards, asked.prompts, asked.ids, config.sampling, seed)
    ]
    return Answers(*(torch.cat(part) for part in zip(*found, strict=True)))


def describe(step: int, answers: Answers, last: Answers) -> dict[str, float]:
    """A candidate's row in the table. `over_last` is its mean reward minus the last checkpoint's on the same prompts,
    `over_last_error` the standard error of that."""
    difference = answers.scores - last.scores
    return {
        "step": step,
        "reward_mean": float(answers.scores.mean()),
        "over_last": float(difference.mean()),
        "over_last_error": float(difference.std()) / math.sqrt(len(difference)),
        "length_mean": float(answers.lengths.float().mean()),
        "eos_rate": float(answers.ended.float().mean()),
    }
