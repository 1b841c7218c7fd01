"""What PPO logs of an iteration: metrics, the mean grades of a judge, and samples to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_schema import Prompt
from policy.maths.advantages import masked_mean
from policy.maths.kl import KlKind, kl_estimate
from policy.maths.losses import explained_variance
from stages.judging import Judge
from stages.ppo.experience import Experience

SAMPLE_ROWS = 8  # rows per table of samples
TABLES = 10  # tables of samples per run


def describe(
    experience: Experience, kl_coef: float, learning_rate: float, kl_estimator: KlKind = "k1"
) -> dict[str, float]:
    """Metrics of one iteration (lm-human-preferences' names). objective/* are means over episodes; KL is in nats per
    episode. `kl_estimator` is the one in the reward; k2 and k3 are computed from the log-ratio, which is k1."""
    mask = experience.rollout.response_mask
    kl = experience.kl.sum(1)
    charged, k3 = (
        kl_estimate(experience.kl, torch.zeros_like(experience.kl), kind).sum(1) for kind in (kl_estimator, "k3")
    )
    return {
        **{f"reward/{name}": float(scores.mean()) for name, scores in experience.parts.items()},
        "objective/score": float(experience.scores.mean()),
        "objective/score_std": float(experience.scores.std()) if len(experience.scores) > 1 else 0.0,
        "objective/reward": float((experience.scores - kl_coef * charged).mean()),
        "objective/kl": float(kl.mean()),
        "objective/kl_k3": float(k3.mean()),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(masked_mean(experience.entropy, mask)),
        "objective/length": float(experience.rollout.lengths.float().mean()),
        "objective/eos_rate": float(experience.rollout.ended.float().mean()),
        "value/explained_variance": float(explained_variance(experience.values, experience.returns, mask)),
        "value/mean": float(masked_mean(experience.values, mask)),
        "value/mean_return": float(masked_mean(experience.returns, mask)),
        "policy/learning_rate": learning_rate,
    }


def numbers(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, all fetched from the device at once."""
    return dict(zip(measured, torch.stack([x.detach().double() for x in measured.values()]).tolist(), strict=True))


def judge_answers(judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str], ended: Tensor) -> dict[str, float]:
    """Mean over the answers of each part of the judge's grades, as monitor/<part>."""
    rows = zip(prompts, texts, ended.tolist(), strict=True)
    judged = [judge(prompt.meta, text, end) for prompt, text, end in rows]
    return {f"monitor/{part}": sum(row[part] for row in judged) / len(judged) for part in judged[0]}


def sample_table(
    prompts: Sequence[Prompt], texts: Sequence[str], experience: Experience
) -> tuple[list[str], list[list[Any]]]:
    """-> (columns, rows) of a table of sampled answers with their scores and KL (nats)."""
    rows = [
        [prompts[i].prompt[-1].content, texts[i], float(experience.scores[i]), float(experience.kl[i].sum())]
        for i in range(min(SAMPLE_ROWS, len(prompts)))
    ]
    return ["prompt", "response", "score", "kl"], rows


def add_up(total: dict[str, float], part: Mapping[str, float]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value


def means_of(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over an iteration's optimiser steps, and the number of steps."""
    means = {name: sum(step[name] for step in measured) / len(measured) for name in measured[0]}
    return {**means, "policy/optimizer_steps": float(len(measured))}
