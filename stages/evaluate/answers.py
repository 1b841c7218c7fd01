"""One model's answers to the evaluation prompts, with all that is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from policy.language_model import LanguageModel
from policy.sampling.rollout import Rollout, as_rollout, response_logprobs
from reward.sources import ModelReward, Part, ReencodedReward
from stages.answering import Unseen, scored_answers
from stages.errors import ConfigError
from stages.evaluate.settings import EvaluateConfig
from stages.judging import Judge
from stages.progress import progress

# Of our numbers and samples; a judge's would replace them.
OWN_NAMES = ("response", "reward", "second_reward", "length")


class Answers(NamedTuple):
    """One model's answers to the evaluation prompts and their scores. Every list has one entry per prompt."""

    texts: list[str]
    ids: list[list[int]]  # the stop token included, if the answer ended
    lengths: list[int]  # tokens, EOS included
    ended: list[bool]
    rewards: list[float]  # the weighted sum of the parts
    by_models: list[float]  # the weighted sum of the parts that are reward models; zeros if none is
    parts: list[dict[str, float]]  # each part as reward_<name>; empty dicts if there is only one
    kl: list[float]  # nats from the SFT model, k1 summed over the answer
    grades: list[dict[str, float]]  # by the judge; empty dicts without one
    second: list[float]  # by the second reward model; empty without one


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
    graded = Answers([], [], [], [], [], [], [], [], [], [])
    batches = scored_answers(model, rewards, asked.prompts, asked.ids, config.sampling, seed)
    with progress(total=len(asked.prompts), desc="evaluate", unit="prompt") as bar:
        for prompts, rollout, texts, scores in batches:
            ended = rollout.ended.tolist()
            lengths = rollout.lengths.tolist()
            graded.texts.extend(texts)
            graded.ids.extend(row[:n] for row, n in zip(rollout.responses.tolist(), lengths, strict=True))
            graded.lengths.extend(lengths)
            graded.ended.extend(ended)
            graded.rewards.extend((scores.judged + scores.penalties).tolist())
            by_models = [part.weight * scores.parts[part.name] for part in model_parts(rewards)]
            graded.by_models.extend(sum(by_models, torch.zeros(len(texts), device=rollout.ended.device)).tolist())
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


def model_parts(rewards: Sequence[Part]) -> list[Part]:
    """The parts of a reward that are reward models."""
    return [part for part in rewards if isinstance(part.reward, ModelReward | ReencodedReward)]


@torch.no_grad()
def score_with(
    models: Sequence[Part], asked: Unseen, answers: Answers, pad_id: int, device: torch.device
) -> list[float]:
    """Score each answer as one to the prompt in its place: the weighted sum of the reward models' scores."""
    rollout = as_rollout(asked.ids, answers.ids, pad_id, device)
    rollout = rollout._replace(ended=torch.tensor(answers.ended, device=device))
    scores = [part.weight * part.reward(asked.prompts, answers.texts, rollout).scores for part in models]
    total: list[float] = torch.stack(scores).sum(0).tolist()
    return total


def with_other_prompts(asked: Unseen, seed: int) -> Unseen:
    """Another of the prompts in each place: the next one in a random order."""
    order = torch.randperm(len(asked.prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    places = [other[i] for i in range(len(order))]
    return asked._replace(prompts=[asked.prompts[i] for i in places], ids=[asked.ids[i] for i in places])


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
