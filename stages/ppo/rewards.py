"""Loads a recipe's rewards, for PPO to maximise and for evaluation to score with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy.language_model import load_tokenizer, positions
from policy.precision import compute_in
from policy.sampling.rollout import Rollout
from policy.special_tokens import check_special_tokens
from reward.ensemble import Member, combine, member_scores, read_members
from reward.invariance import check_scores_are_independent
from reward.scalar_model import load_scalar_model, response_scores
from reward.sources import (
    FunctionReward,
    LengthPenalty,
    ModelReward,
    OpeningPenalty,
    Part,
    ReencodedReward,
    RepetitionPenalty,
    Reward,
    Scored,
)
from stages.errors import ConfigError
from stages.job import Job
from stages.judging import load_function
from stages.ppo.reward_settings import RewardPart, reads_pipelines, reward_role
from stages.ppo.roles import Roles, check_same_text, text_difference
from stages.ppo.settings import PpoConfig
from stages.ppo.trunk import Trunk


class LoadedModel(NamedTuple):
    """The recipe's reward model, if it is in memory already."""

    model: PreTrainedModel
    within: Callable[[], AbstractContextManager[Any]]  # context in which `model` computes as the reward model


class Reader(NamedTuple):
    """The policy whose texts are scored, and how they are scored."""

    tokenizer: PreTrainedTokenizerBase  # the policy's
    source: Path  # directory of the policy, for error messages
    device: torch.device
    batch_size: int
    seed: int
    precision: str = "float32"  # of reward models loaded here, set after their check


def load_rewards(
    rewards: Sequence[RewardPart],
    parents: Mapping[str, Path],
    reader: Reader,
    loaded: LoadedModel | None = None,
    trunk: Trunk | None = None,
) -> list[Part]:
    """Load the parts in order; reward models that read the policy's ids share what they can of its `trunk`.

    Raises ConfigError or ModelError if one is missing or encodes text differently."""
    return [
        Part(part.label, part.weight, _load(part, reward_role(place), parents, reader, loaded, trunk), part.is_penalty)
        for place, part in enumerate(rewards)
    ]


def load_ppo_rewards(config: PpoConfig, job: Job, roles: Roles) -> list[Part]:
    """Load PPO's rewards; a reward model that is already among the roles is reused."""
    reader = Reader(
        roles.tokenizer, job.parents["sft"], roles.policy.device, config.sampling.batch_size, job.seed, config.precision
    )
    loaded = None if roles.reward is None else LoadedModel(roles.reward, roles.as_reward)
    return load_rewards(config.rewards, job.parents, reader, loaded, roles.trunk)


def _load(
    part: RewardPart,
    role: str,
    parents: Mapping[str, Path],
    reader: Reader,
    loaded: LoadedModel | None,
    trunk: Trunk | None,
) -> Reward:
    if part.function is not None:
        return FunctionReward(load_function(part.function, "rewards"), part.function, reader.seed)
    if part.length_penalty is not None:
        return LengthPenalty(part.length_penalty)
    if part.repetition_penalty is not None:
        return RepetitionPenalty(part.repetition_penalty)
    if part.opening_penalty is not None:
        return OpeningPenalty(part.opening_penalty)
    source = parents["reward_model" if part.is_pipelines else role]
    tokenizer = load_tokenizer(source)
    reads_same = text_difference(reader.tokenizer, tokenizer) is None
    if not part.text_crosses_over:
        check_same_text(reader.tokenizer, tokenizer, reader.source, source)
    if loaded is None or not part.is_pipelines:
        check_special_tokens(tokenizer, source)
        loaded = LoadedModel(load_scalar_model(source, reader.device).eval().requires_grad_(False), nullcontext)
        check_scores_are_independent(loaded.model, tokenizer.pad_token_id)
        if trunk is not None and reads_same:
            trunk.share(loaded.model, source)
        compute_in(loaded.model, reader.precision)
    members = read_members(source, loaded.model)
    if part.ensemble != "mean" and not members:
        raise ConfigError(
            f"the reward '{part.label}' sets `ensemble: {part.ensemble}`, but '{source}' contains one reward model; "
            "train it with reward_model.ensemble, or leave `ensemble` out"
        )
    reward = ModelReward(partial(_read, loaded.model, members, part), reader.batch_size, loaded.within)
    if reads_same:
        return reward
    return ReencodedReward(reward, tokenizer, reader.device, positions(loaded.model.config))


def _read(model: PreTrainedModel, members: Sequence[Member], part: RewardPart, rows: Rollout) -> Scored:
    if not members:
        return Scored(response_scores(model, rows), {})
    return combine(member_scores(model, members, rows), part.ensemble, part.disagreement_coef)


def model_for_values(rewards: Sequence[RewardPart], parents: Mapping[str, Path]) -> Path | None:
    """Directory of the reward model that the value model starts from: the recipe's own, if it is among the rewards and
    reads the policy's ids; otherwise None."""
    if not reads_pipelines(rewards):
        return None
    crosses = any(part.is_pipelines and part.text_crosses_over for part in rewards)
    source = parents["reward_model"]
    if crosses and text_difference(load_tokenizer(parents["sft"]), load_tokenizer(source)) is not None:
        return None
    return source
