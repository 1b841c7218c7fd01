"""Between reward model and PPO: which of SFT's checkpoints goes on (InstructGPT C.1).

Each answers the same prompts, which SFT was not trained on; the one whose answers the reward model scores highest is
published again, and is PPO's start and reference. The reward model itself was trained from SFT's last checkpoint: it
has to exist before there is anything to choose by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data_schema import Prompt, Records, dedup_prompts, load_all, read_records
from policy.encoding import decode_responses, encode_prompts
from policy.language_model import choose_device, load_language_model, load_tokenizer
from policy.rollout import collect_rollout
from reward.sources import Part, score_rollout
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account, prompt_hash, read_seen_prompts, write_seen_prompts
from stages.ppo_rewards import Reader, load_rewards
from stages.reward_settings import RewardPart
from stages.sft_candidates import PROMPTS, copy_model, read_index
from stages.sft_settings import SelectConfig


class Answered(NamedTuple):
    """One candidate's answers to all prompts; tensors (prompts,) on the CPU."""

    scores: Tensor  # by the reward model, normalised
    lengths: Tensor  # tokens, EOS included
    ended: Tensor


def run(config: SelectConfig, job: Job) -> StageResult:
    """Score every candidate; the output is the best one's checkpoint, the earliest among equals."""
    device = choose_device(config.device)
    sft = job.parents["sft"]
    candidates = read_index(sft)
    if not candidates:
        raise ConfigError(
            f"the SFT checkpoint '{sft}' holds no candidates; run sft again with sft.select: reward_model"
        )
    prompts, ids, data = unseen_prompts(config, job)
    reader = Reader(load_tokenizer(sft), sft, device, config.sampling.batch_size, job.seed)
    rewards = load_rewards([RewardPart()], job.parents, reader)
    answered = {
        step: answer(directory, rewards, prompts, ids, config, job.seed, device)
        for step, directory in tqdm(candidates.items(), desc="select", unit="candidate")
    }
    last = answered[max(answered)]
    rows = [describe(step, answers, last) for step, answers in answered.items()]
    best = max(rows, key=lambda row: row["reward_mean"])
    selected = int(best["step"])
    for row in rows:
        shown = {f"select/{name}": value for name, value in row.items() if name != "step"}
        job.tracker.log(shown, step=int(row["step"]))
    columns = ["candidate", *list(rows[0])[1:]]  # a table has a step of its own
    job.tracker.table("candidates", columns, [list(row.values()) for row in rows], step=max(answered))
    copy_model(candidates[selected], job.output)
    # What it was chosen by, no evaluation may use.
    write_seen_prompts(job.output, prompts, read_seen_prompts([sft]))
    return StageResult({"selected_step": selected, **best, "candidates": rows}, data)


def unseen_prompts(config: SelectConfig, job: Job) -> tuple[list[Prompt], list[list[int]], dict[str, Any]]:
    """The first n_prompts that SFT was not trained on and that are short enough -> (prompts, ids, account)."""
    sft = job.parents["sft"]
    records: Records[Prompt] | list[Prompt]
    if config.prompts:
        records = dedup_prompts(load_all(config.prompts, Prompt, job.seed))
        account = data_account(records)
    else:
        records = list(read_records(sft / PROMPTS, Prompt))
        account = {"source": "kept back by sft", "records": len(records), "dropped": {}}
    seen = read_seen_prompts([sft])
    fresh = [record for record in records if prompt_hash(record) not in seen]
    encoded = encode_prompts(load_tokenizer(sft), [record.prompt for record in fresh])
    kept = [(record, row) for record, row in zip(fresh, encoded, strict=True) if len(row) <= config.max_prompt_length]
    dropped = {"trained on": len(records) - len(fresh), "too long": len(fresh) - len(kept)}
    account["dropped"] |= {reason: count for reason, count in dropped.items() if count}
    kept = kept[: config.n_prompts]
    if len(kept) < 2:
        raise ConfigError(
            f"select: {len(kept)} of {len(records)} prompts are left to choose by ({dropped['trained on']} were "
            f"trained on, {dropped['too long']} are longer than {config.max_prompt_length} tokens); raise "
            "sft.held_out, or name select.prompts"
        )
    return [record for record, _ in kept], [row for _, row in kept], {"prompts": {**account, "used": len(kept)}}


@torch.no_grad()
def answer(
    directory: Path,
    rewards: Sequence[Part],
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    config: SelectConfig,
    seed: int,
    device: torch.device,
) -> Answered:
    """Sample one answer to each prompt and score it; every candidate samples from the same seed."""
    model, tokenizer = load_language_model(directory, device)
    model.eval()
    rng = torch.Generator(device).manual_seed(seed)
    found = []
    size = config.sampling.batch_size
    for start in range(0, len(ids), size):
        rollout = collect_rollout(
            model,
            ids[start : start + size],
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            batch_size=size,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            rng=rng,
        )
        texts = decode_responses(tokenizer, rollout.responses, rollout.lengths)
        scores = score_rollout(rewards, prompts[start : start + size], texts, rollout)
        found.append(Answered(scores.judged.cpu(), rollout.lengths.cpu(), rollout.ended.cpu()))
    return Answered(*(torch.cat(part) for part in zip(*found, strict=True)))


def describe(step: int, answers: Answered, last: Answered) -> dict[str, float]:
    """A row of the table. `over_last` is the mean difference to the last checkpoint on the same prompts, with its
    standard error."""
    difference = answers.scores - last.scores
    return {
        "step": step,
        "reward_mean": float(answers.scores.mean()),
        "over_last": float(difference.mean()),
        "over_last_error": float(difference.std()) / math.sqrt(len(difference)),
        "length_mean": float(answers.lengths.float().mean()),
        "eos_rate": float(answers.ended.float().mean()),
    }
