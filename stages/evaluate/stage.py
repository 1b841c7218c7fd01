"""Evaluation: SFT model and PPO policy answer the same prompts, which no stage was trained on (InstructGPT 3.6).

If the recipe names a judge, it decides wins. Otherwise the reward decides. PPO maximised that reward, so the win rate
then only measures progress on the proxy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_schema import Prompt, Records, dedup_prompts, load_all
from policy.language_model import LanguageModel, choose_device, load_language_model, load_tokenizer
from policy.sampling.rollout import Rollout, response_logprobs
from reward.sources import Part
from stages.answering import Unseen, scored_answers, unseen_prompts
from stages.doubts import all_empty, few_ends, rows_lost, same_score, warn
from stages.errors import ConfigError
from stages.evaluate.settings import EvaluateConfig
from stages.job import Job, StageResult, data_account
from stages.judging import Judge, load_judge
from stages.ppo.reward_settings import RewardPart
from stages.ppo.rewards import Reader, load_rewards
from stages.progress import progress
from stages.statistics import win_rate

logger = logging.getLogger("triptych.evaluate")
RESULT_FILE, SAMPLES_FILE = "evaluation.json", "samples.jsonl"
OWN_NAMES = ("response", "reward", "length")  # of the evaluation's numbers and samples; a judge's would replace them


class Answers(NamedTuple):
    """One model's answers to the evaluation prompts and their scores. Every list has one entry per prompt."""

    texts: list[str]
    lengths: list[int]  # tokens, EOS included
    ended: list[bool]
    rewards: list[float]  # the weighted sum of the parts
    parts: list[dict[str, float]]  # each part as reward_<name>; empty dicts if there is only one
    kl: list[float]  # nats from the SFT model, k1 summed over the answer
    grades: list[dict[str, float]]  # by the judge; empty dicts without one


def run(config: EvaluateConfig, job: Job) -> StageResult:
    """Compare `sft` and `ppo`; the output is evaluation.json and samples.jsonl."""
    device = choose_device(config.device)
    judge = load_judge(config.judge, "evaluate.judge") if config.judge else None
    asked, data = evaluation_prompts(config, job)
    reference = load_language_model(job.parents["sft"], device)
    # The SFT model's tokenizer is used for both models: the policy has the same one.
    reader = Reader(reference.tokenizer, job.parents["sft"], device, config.sampling.batch_size, job.seed)
    rewards = load_rewards(config.rewards or [RewardPart()], job.parents, reader)
    models = {"sft": reference, "ppo": load_language_model(job.parents["ppo"], device)}
    answers = {
        name: answer(model, reference, rewards, judge, asked, config, job.seed) for name, model in models.items()
    }
    warn(job.tracker, *(without_own_names(model.grades) for model in answers.values()))
    result: dict[str, dict[str, float]] = {name: summarise(model) for name, model in answers.items()}
    for name, model in answers.items():
        ends = few_ends(
            f"evaluate ({name})", result[name]["eos_rate"], config.sampling.max_new_tokens, "evaluate.sampling"
        )
        warn(job.tracker, ends, all_empty(f"evaluate ({name})", model.texts))
    warn(job.tracker, same_score("evaluate", [score for model in answers.values() for score in decisive(model)]))
    result["ppo"] |= compare(decisive(answers["ppo"]), decisive(answers["sft"]))

    job.output.mkdir(parents=True)
    scored_by = "reward model" if all(part.is_model for part in config.rewards) else "reward"
    decided_by = "judge" if config.judge else scored_by
    account = {"decided_by": decided_by, "n_prompts": len(asked.prompts), "models": result}
    (job.output / RESULT_FILE).write_text(json.dumps(account, indent=1) + "\n")
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt.prompt[-1].content,
            **{
                name: {"response": model.texts[i], "reward": model.rewards[i], **model.parts[i], **model.grades[i]}
                for name, model in answers.items()
            },
        }
        for i, prompt in enumerate(asked.prompts)
    ]
    (job.output / SAMPLES_FILE).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name, numbers in result.items():
        job.tracker.log({f"evaluate/{name}/{key}": value for key, value in numbers.items()}, step=1)
    shown = [[row["prompt"], row["sft"]["response"], row["ppo"]["response"]] for row in rows[:20]]
    job.tracker.table("evaluation", ["prompt", "sft", "ppo"], shown, step=1)
    return StageResult({"models": result, "decided_by": decided_by}, data)


def evaluation_prompts(config: EvaluateConfig, job: Job) -> tuple[Unseen, dict[str, Any]]:
    """-> (the first n_prompts that no parent was trained on and that are short enough, counts for the manifest)."""
    records: Records[Prompt] = dedup_prompts(load_all(config.prompts, Prompt, job.seed))
    tokenizer = load_tokenizer(job.parents["sft"])
    unseen = unseen_prompts(records, job.parents.values(), tokenizer, config.max_prompt_length)
    if unseen.trained_on:
        logger.warning("evaluate: left out %d of %d prompts that were trained on", unseen.trained_on, len(records))
    if len(unseen.prompts) < 2:
        raise ConfigError(
            f"evaluate.prompts: {len(unseen.prompts)} of {len(records)} prompts are left ({unseen.trained_on} were "
            f"trained on, {unseen.too_long} are longer than {config.max_prompt_length} tokens); give prompts that no "
            "other stage uses"
        )
    account = data_account(records, trained_on=unseen.trained_on, too_long=unseen.too_long)
    fixes = {
        "too long": f"raise evaluate.max_prompt_length (here {config.max_prompt_length})",
        "trained on": "give evaluate.prompts that no other stage uses",
    }
    left_out = {"trained on": unseen.trained_on, "too long": unseen.too_long}
    warn(job.tracker, rows_lost("evaluate.prompts", len(records), left_out, fixes))
    used = unseen.first(config.n_prompts)
    return used, {"prompts": {**account, "used": len(used.prompts)}}


@torch.no_grad()
def answer(
    model: LanguageModel,
    reference: LanguageModel,
    rewards: Sequence[Part],
    judge: Judge | None,
    asked: Unseen,
    config: EvaluateConfig,
    seed: int,
) -> Answers:
    """Sample one answer to each prompt; returns the answers with rewards, KL and the judge's grades."""
    reference.model.eval()
    graded = Answers([], [], [], [], [], [], [])
    batches = scored_answers(model, rewards, asked.prompts, asked.ids, config.sampling, seed)
    with progress(total=len(asked.prompts), desc="evaluate", unit="prompt") as bar:
        for prompts, rollout, texts, scores in batches:
            ended = rollout.ended.tolist()
            graded.texts.extend(texts)
            graded.lengths.extend(rollout.lengths.tolist())
            graded.ended.extend(ended)
            graded.rewards.extend((scores.judged + scores.penalties).tolist())
            graded.parts.extend(part_rows(scores.parts, len(texts)))
            graded.kl.extend(sequence_kl(model, reference, rollout, config.sampling.temperature))
            for prompt, text, end in zip(prompts, texts, ended, strict=True):
                graded.grades.append(judge(prompt.meta, text, end) if judge else {})
            bar.update(len(texts))
    if judge and "gold" not in graded.grades[0]:
        raise ConfigError(
            f"evaluate.judge '{config.judge}' returns {', '.join(graded.grades[0]) or 'nothing'}, but not 'gold', "
            "which decides wins; let it return a score under that name"
        )
    return graded


def part_rows(parts: Mapping[str, Tensor], n: int) -> list[dict[str, float]]:
    """Each answer's parts of the reward; empty if the only part is the reward itself."""
    if len(parts) == 1:
        return [{} for _ in range(n)]
    return [{f"reward_{name}": float(scores[i]) for name, scores in parts.items()} for i in range(n)]


def sequence_kl(model: LanguageModel, reference: LanguageModel, rollout: Rollout, temperature: float) -> list[float]:
    """log pi(y|x) - log pi_SFT(y|x) of each sampled answer, in nats: its mean estimates the KL."""
    own = response_logprobs(model.model, rollout, temperature).logprobs
    base = response_logprobs(reference.model, rollout, temperature).logprobs
    kl: list[float] = (own - base).sum(1).tolist()
    return kl


def without_own_names(grades: list[dict[str, float]]) -> str | None:
    """Remove grades that are called like the evaluation's own numbers. Returns a warning if there were any."""
    taken = [name for name in OWN_NAMES if any(name in grade for grade in grades)]
    for grade in grades:
        for name in taken:
            grade.pop(name, None)
    if not taken:
        return None
    named = ", ".join(f"'{name}'" for name in taken)
    return (
        f"evaluate: some scores of the judge are not recorded ({named}), since the evaluation itself uses these names."
        " Rename them in the judge."
    )


def summarise(answers: Answers) -> dict[str, float]:
    """Means over prompts; each part of the judge's grades and of the reward as <part>_mean."""
    n = len(answers.texts)
    scores = [grade | parts for grade, parts in zip(answers.grades, answers.parts, strict=True)]
    means = {f"{part}_mean": sum(row[part] for row in scores) / n for part in scores[0]}
    return {
        **means,
        "reward_mean": sum(answers.rewards) / n,
        "length_mean": sum(answers.lengths) / n,
        "eos_rate": sum(answers.ended) / n,
        "kl": sum(answers.kl) / n,
    }


def decisive(answers: Answers) -> list[float]:
    """The scores that decide who wins each prompt: the judge's gold scores, or the rewards without a judge."""
    return [grade.get("gold", reward) for grade, reward in zip(answers.grades, answers.rewards, strict=True)]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Win rate with its 95 % interval (Wilson); equal scores count as half a win."""
    wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
    ties = sum(a == b for a, b in zip(ours, theirs, strict=True))
    rate = win_rate(wins, ties, len(ours) - wins - ties)
    return {"win_rate": rate.rate, "win_rate_low": rate.wilson.low, "win_rate_high": rate.wilson.high}
