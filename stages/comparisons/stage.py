"""Stage 2a, collecting comparisons (InstructGPT 3.1): K answers of the SFT model to each prompt, ranked by a labeler.

The labeler is a function; noise can imitate human errors. Human rankings are given as `reward_model.data` instead and
do not need this stage. Answers cut off before EOS are left out, because an unfinished answer cannot be ranked.
"""

from __future__ import annotations

import random
from collections import Counter

import torch

from data_schema import Comparison, Prompt, load_all, write_records
from policy.encoding import decode_responses, encode_prompts
from policy.language_model import LanguageModel, choose_device, load_language_model
from stages.answering import sample_answers
from stages.comparisons.settings import ComparisonsConfig
from stages.doubts import few_ends, rows_lost, warn
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account
from stages.judging import Judge, gold_score, load_judge
from stages.progress import progress

TOO_FEW, ALL_TIE = "fewer than two answers that differ", "all answers tie"
CHUNK = 1024  # prompts answered between updates of the progress bar
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl.gz", "held_out.jsonl.gz"


def run(config: ComparisonsConfig, job: Job) -> StageResult:
    """Sample and rank answers; the output is comparisons, in files of the `records` format."""
    device = choose_device(config.device)
    labeler = load_judge(config.labeler, "comparisons.labeler")
    language_model = load_language_model(job.parents["sft"], device)
    prompts = load_all(config.prompts, Prompt, job.seed)
    if config.held_out_prompts >= len(prompts):
        raise ConfigError(
            f"comparisons.held_out_prompts is {config.held_out_prompts}, but there are {len(prompts)} prompts; lower it"
        )
    sampling_rng = torch.Generator(device).manual_seed(job.seed)
    labeler_rng = random.Random(f"labeler {job.seed}")
    first_held_out = len(prompts) - config.held_out_prompts

    kept: list[Comparison] = []
    n_train, n_pairs, n_ended = 0, 0, 0
    dropped: Counter[str] = Counter()
    with progress(total=len(prompts), desc="comparisons", unit="prompt") as bar:
        for start in range(0, len(prompts), CHUNK):
            batch = [prompts[i] for i in range(start, min(start + CHUNK, len(prompts)))]
            answers, ended = distinct_answers(batch, language_model, config, sampling_rng)
            n_ended += ended
            for offset, (prompt, drawn) in enumerate(zip(batch, answers, strict=True)):
                training = start + offset < first_held_out
                noise = config.label_noise if training else 0.0
                comparison = rank_answers(prompt, drawn, labeler, config, noise, labeler_rng)
                if isinstance(comparison, str):
                    dropped[comparison] += 1
                else:
                    kept.append(comparison)
                    n_train += training
                    n_pairs += sum(a != b for i, a in enumerate(comparison.ranks) for b in comparison.ranks[i + 1 :])
            bar.update(len(batch))
    ended_share = n_ended / (len(prompts) * config.answers_per_prompt)
    fixes = how_to_keep(config, ended_share)
    if n_train == 0:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        main = dropped.most_common(1)[0][0] if dropped else TOO_FEW
        raise ConfigError(f"comparisons: no prompt gave answers to rank ({reasons}); {fixes[main]}")
    ends = few_ends("comparisons", ended_share, config.sampling.max_new_tokens, "comparisons.sampling")
    warn(job.tracker, ends, rows_lost("comparisons.prompts", len(prompts), dropped, fixes))

    job.output.mkdir(parents=True)
    write_records(job.output / TRAIN_FILE, kept[:n_train])
    if n_train < len(kept):
        write_records(job.output / HELD_OUT_FILE, kept[n_train:])
    metrics = {
        "comparisons": n_train,
        "held_out": len(kept) - n_train,
        "pairs": n_pairs,
        "dropped": dict(dropped),
        "eos_rate": ended_share,
    }
    return StageResult(metrics, {"prompts": data_account(prompts)})


def distinct_answers(
    prompts: list[Prompt], language_model: LanguageModel, config: ComparisonsConfig, rng: torch.Generator
) -> tuple[list[list[str]], int]:
    """-> (each prompt's distinct answers that ended with a stop token, in sampling order; number of such answers)."""
    model, tokenizer = language_model
    ids = encode_prompts(tokenizer, [prompt.prompt for prompt in prompts])
    k = config.answers_per_prompt
    rollout = sample_answers(model, tokenizer, ids, config.sampling, rng, k)
    texts = decode_responses(tokenizer, rollout.responses, rollout.lengths)
    ended = rollout.ended.tolist()
    distinct = [
        list(dict.fromkeys(texts[i] for i in range(row * k, (row + 1) * k) if ended[i] and texts[i]))
        for row in range(len(prompts))
    ]
    return distinct, sum(ended)


def how_to_keep(config: ComparisonsConfig, ended_share: float) -> dict[str, str]:
    """Reason why a prompt gave no comparison -> what to do about it."""
    if ended_share < 0.5:
        few = (
            f"{1 - ended_share:.0%} of the answers were cut off: raise comparisons.sampling.max_new_tokens (here "
            f"{config.sampling.max_new_tokens}), or train SFT until it ends its answers"
        )
    else:
        few = "the answers are alike: raise comparisons.answers_per_prompt or comparisons.sampling.temperature"
    margin = " or lower comparisons.tie_margin" if config.tie_margin else ""
    return {TOO_FEW: few, ALL_TIE: f"let the labeler give finer scores{margin}"}


def rank_answers(
    prompt: Prompt, answers: list[str], labeler: Judge, config: ComparisonsConfig, noise: float, rng: random.Random
) -> Comparison | str:
    """A comparison, or the reason why there is none. Rank 1 is best; answers whose gold scores are within the tie
    margin of a group's best share its rank."""
    if len(answers) < 2:
        return TOO_FEW
    gold = {answer: gold_score(labeler(prompt.meta, answer, True), config.labeler) for answer in answers}
    groups: list[list[str]] = []
    for answer in sorted(answers, key=gold.__getitem__, reverse=True):
        behind = gold[groups[-1][0]] - gold[answer] if groups else 0.0
        if groups and (behind < config.tie_margin or behind == 0):
            groups[-1].append(answer)
        else:
            groups.append([answer])
    if len(groups) < 2:
        return ALL_TIE
    for place in range(len(groups) - 1):
        if rng.random() < noise:
            groups[place], groups[place + 1] = groups[place + 1], groups[place]
    ranks = {answer: rank for rank, group in enumerate(groups, start=1) for answer in group}
    return Comparison(
        id=prompt.id,
        source=prompt.source,
        prompt=prompt.prompt,
        responses=tuple(answers),
        ranks=tuple(ranks[answer] for answer in answers),
        labeler=config.labeler,
        group=prompt.group,
        meta={**prompt.meta, "gold": [gold[answer] for answer in answers]},
    )
