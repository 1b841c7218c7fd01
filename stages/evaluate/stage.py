"""Evaluation: SFT model and PPO policy answer the same prompts, which no stage was trained on (InstructGPT 3.6).

If the recipe names a judge, it decides wins. Otherwise the second reward model decides, which PPO has not seen, or
without one the reward. PPO maximised that reward, so the win rate then only measures progress on the proxy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from data_schema import Prompt, Records, dedup_prompts, load_all
from policy.language_model import load_tokenizer
from stages.answering import Unseen, unseen_prompts
from stages.doubts import all_empty, collapsed, few_ends, rows_lost, same_score, warn
from stages.errors import ConfigError
from stages.evaluate.answers import Answers, without_own_names
from stages.evaluate.comparison import compare, decisive, gain, summarise
from stages.evaluate.measurements import measure
from stages.evaluate.settings import EvaluateConfig
from stages.job import Job, StageResult, data_account

logger = logging.getLogger("triptych.evaluate")
RESULT_FILE, SAMPLES_FILE = "evaluation.json", "samples.jsonl"
SECOND = "second reward model"


def run(config: EvaluateConfig, job: Job) -> StageResult:
    """Compare `sft` and `ppo`; the output is evaluation.json and samples.jsonl."""
    asked, data = evaluation_prompts(config, job)
    answers, measured, base = measure(config, job, asked, data)
    warn(job.tracker, *(without_own_names(model.grades) for model in answers.values()))
    result = {name: summarise(model) | measured[name] for name, model in answers.items()}
    for name, model in answers.items():
        ends = few_ends(
            f"evaluate ({name})", result[name]["eos_rate"], config.sampling.max_new_tokens, "evaluate.sampling"
        )
        warn(job.tracker, ends, all_empty(f"evaluate ({name})", model.texts))
    warn(job.tracker, same_score("evaluate", [score for model in answers.values() for score in decisive(model)]))
    warn(job.tracker, collapsed("evaluate", result["ppo"], result["sft"]))
    ppo, sft = answers["ppo"], answers["sft"]
    result["ppo"] |= compare(decisive(ppo), decisive(sft)) | gain("reward_gain_sd", ppo.rewards, sft.rewards)
    if ppo.second:
        result["ppo"] |= gain("second_reward_gain_sd", ppo.second, sft.second)

    job.output.mkdir(parents=True)
    scored_by = "reward model" if all(part.is_model for part in config.rewards) else "reward"
    decided_by = "judge" if config.judge else SECOND if ppo.second else scored_by
    account = {"decided_by": decided_by, "n_prompts": len(asked.prompts), "models": result, **base}
    (job.output / RESULT_FILE).write_text(json.dumps(account, indent=1) + "\n")
    rows: list[dict[str, Any]] = [
        {"prompt": prompt.prompt[-1].content} | {name: sample(model, i) for name, model in answers.items()}
        for i, prompt in enumerate(asked.prompts)
    ]
    (job.output / SAMPLES_FILE).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name, numbers in result.items():
        job.tracker.log({f"evaluate/{name}/{key}": value for key, value in numbers.items()}, step=1)
    shown = [[row["prompt"], row["sft"]["response"], row["ppo"]["response"]] for row in rows[:20]]
    job.tracker.table("evaluation", ["prompt", "sft", "ppo"], shown, step=1)
    return StageResult({"models": result, "decided_by": decided_by, **base}, data)


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


def sample(answers: Answers, i: int) -> dict[str, Any]:
    """One answer with its scores, for the file of samples."""
    second = {"second_reward": answers.second[i]} if answers.second else {}
    scores: Mapping[str, float] = {"reward": answers.rewards[i], **second, **answers.parts[i], **answers.grades[i]}
    return {"response": answers.texts[i], **scores}
