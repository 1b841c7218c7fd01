"""Fits a reward model on frozen layers: one pass over all texts, then a readout selected by five folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward.calibration import Temperature, fit_temperature
from reward.frozen_layers import check_readout, fit_readout, mean_states, write_readout
from reward.shared_prompt import PackedAnswers
from stages.errors import ConfigError
from stages.job import Job
from stages.progress import progress
from stages.reward_model.settings import RewardModelConfig
from stages.reward_model.trainer import Ranking, RankingCollator

logger = logging.getLogger("triptych.reward_model")
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 5


def fit_frozen(
    model: PreTrainedModel,
    train: Sequence[Ranking],
    collator: RankingCollator,
    config: RewardModelConfig,
    job: Job,
    name: str = "reward_model",
) -> dict[str, float]:
    """Fit the readout of a model that was cut and write it into the model; returns the folds' metrics, logged under
    `name`."""
    if len(train) < FOLDS:
        raise ConfigError(
            f"reward_model.frozen_layers needs {FOLDS} training comparisons, but there are {len(train)}; give more data"
        )
    model.eval()
    rankings, means = read_means(model, train, collator, config.batch_prompts)
    measured = {l2: across_folds(rankings, means, collator, l2, job.seed) for l2 in PENALTIES}
    best = min(PENALTIES, key=lambda l2: measured[l2].fit.log_loss)
    # The penalty shrinks the scores. The folds show by how much; dividing by it turns differences into log-odds again.
    temperature = measured[best].fit.temperature or 1.0
    readout = fit_readout(torch.cat(means), collator.pairs(rankings, len(rankings)), best).divided(temperature)
    write_readout(model, readout)
    check_readout(model, on_device(collator, rankings[:8], model), readout)
    for l2, (accuracy, fit) in measured.items():
        logger.info("%s: L2 %g, %d folds: accuracy %.3f, log loss %.3f", name, l2, FOLDS, accuracy, fit.log_loss)
    accuracy, fit = measured[best]
    found = {"l2": best, "folds/pair_accuracy": accuracy, "folds/loss": fit.log_loss}
    job.tracker.log({f"{name}/{metric}": value for metric, value in found.items()}, step=0)
    return found


def read_means(
    model: PreTrainedModel, rankings: Sequence[Ranking], collator: RankingCollator, batch_prompts: int
) -> tuple[list[Ranking], list[Tensor]]:
    """-> (the rankings sorted by length, the (answers, hidden) mean states of each, on the CPU)."""
    ordered = sorted(rankings, key=Ranking.n_tokens)
    batches = (ordered[start : start + batch_prompts] for start in range(0, len(ordered), batch_prompts))
    done: list[Ranking] = []
    means: list[Tensor] = []
    with progress(total=len(ordered), desc="frozen layers", unit="prompt") as bar:
        for part in chain.from_iterable(map(collator.parts, batches)):
            found = mean_states(model, on_device(collator, part, model)).cpu()
            means += found.split([len(ranking.responses) for ranking in part])
            done += part
            bar.update(len(part))
    return done, means


def on_device(collator: RankingCollator, rankings: Sequence[Ranking], model: PreTrainedModel) -> PackedAnswers:
    return PackedAnswers(*(tensor.to(model.device) for tensor in collator.pack(rankings)))


class Folds(NamedTuple):
    """Metrics on pairs that were left out of the fit, each pair once."""

    pair_accuracy: float
    fit: Temperature


def across_folds(
    rankings: Sequence[Ranking], means: Sequence[Tensor], collator: RankingCollator, l2: float, seed: int
) -> Folds:
    """Cross-validate one L2 penalty; the seed decides the folds."""
    order = torch.randperm(len(rankings), generator=torch.Generator().manual_seed(seed)).tolist()
    differences: list[Tensor] = []
    for fold in range(FOLDS):
        left_out = order[fold::FOLDS]
        fitted_on = sorted(set(order) - set(left_out))
        own = collator.pairs([rankings[i] for i in fitted_on], len(fitted_on))
        readout = fit_readout(torch.cat([means[i] for i in fitted_on]), own, l2)
        pairs = collator.pairs([rankings[i] for i in left_out], len(left_out))
        scores = torch.cat([means[i] for i in left_out]).double() @ readout.score
        differences.append(scores[pairs.winner] - scores[pairs.loser])
    found = torch.cat(differences).numpy()
    return Folds(float((found > 0).mean()), fit_temperature(found))
