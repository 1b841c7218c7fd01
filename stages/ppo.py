"""Stage 3, PPO against the reward model (InstructGPT 3.5 eq. 2, C.4). One prompt's way, top to bottom:

prompts -> rollout -> scores -> per-token rewards -> values -> advantages -> minibatch updates -> metrics -> checkpoint.

We differ from the paper: (1) the value loss is clipped, as in lm-human-preferences; (2) advantages are whitened once
per rollout batch, not per minibatch; (3) gradients are clipped by norm. The score stands on the last real token, and
one mask serves every loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data_schema import Document, load_all
from policy.advantages import estimate_advantages, whiten
from policy.checkpointing import checkpointed
from policy.ema import update_ema
from policy.encoding import decode_responses
from policy.errors import ModelError
from policy.kl import adaptive_kl_coef, replace_score_without_eos, token_rewards
from policy.language_model import choose_device
from policy.losses import clipped_policy_loss, clipped_value_loss
from policy.pretraining import endless_rows, pack_documents, pretraining_loss
from policy.rollout import Rollout, response_logprobs
from reward.scalar_model import response_values
from reward.sources import RolloutScores, score_rollout
from stages.answering import sample_answers
from stages.configs import PpoConfig
from stages.job import Job, StageResult, data_account, write_seen_prompts
from stages.judging import load_judge
from stages.optimizer import make_optimizer
from stages.ppo_metrics import TABLES, describe, judge_answers, sample_table
from stages.ppo_prompts import load_prompts, prompt_batches, shuffles
from stages.ppo_record import Optimizers, Recorder, Steps, snapshot_path, write_snapshot
from stages.ppo_rewards import load_ppo_rewards, model_for_values
from stages.ppo_roles import Roles, load_roles
from stages.ppo_stop import check_step


class Experience(NamedTuple):
    """A rollout and all that PPO computes from it before it changes a weight. Tensors (batch, response), filler 0,
    but for scores and parts."""

    rollout: Rollout
    scores: Tensor  # (batch,) what the reward is made of: the parts' sum, or the penalty for an answer without end
    parts: dict[str, Tensor]  # (batch,) each part of the sum by its name, before its weight
    logprobs: Tensor  # under the policy that sampled
    entropy: Tensor
    kl: Tensor  # k1 per token, nats
    values: Tensor
    advantages: Tensor  # whitened
    returns: Tensor


def run(config: PpoConfig, job: Job) -> StageResult:
    """Improve the SFT model's answers by their rewards; the output is a causal language model."""
    device = choose_device(config.device)
    roles, optimizers = begin(config, job.parents, job.seed, device)
    recorder = Recorder(config, job, device, roles.tokenizer.pad_token_id)
    rewards = load_ppo_rewards(config, job, roles)
    rng = torch.Generator(device).manual_seed(job.seed)
    order_rng = torch.Generator().manual_seed(job.seed)
    judge = load_judge(config.monitor, "ppo.monitor") if config.monitor else None

    prompts, ids, too_long = load_prompts(config, job.seed, roles.tokenizer)
    data = {"prompts": data_account(prompts, too_long=too_long)}
    pretraining_rows = None
    if config.pretraining_coef > 0:
        documents = load_all(config.pretraining_data, Document, job.seed)
        rows = pack_documents(roles.tokenizer, documents, config.pretraining_length)
        pretraining_rows = recorder.text(endless_rows(rows, config.pretraining_rows, order_rng))
        data["pretraining_data"] = data_account(documents)

    orders = recorder.orders(shuffles(config.rollout_batch, order_rng))
    trained = [parameter for parameter in roles.policy.parameters() if parameter.requires_grad]
    averaged = [parameter.detach().clone() for parameter in trained] if config.ema_decay else []
    kl_coef = config.kl_coef
    metrics: dict[str, float] = {}

    bar = tqdm(range(config.iterations), desc="ppo", unit="iteration")
    for iteration, batch in zip(bar, prompt_batches(len(ids), config.rollout_batch, order_rng), strict=False):
        with recorder.sampling(iteration + 1):
            rollout = sample_answers(roles.policy, roles.tokenizer, [ids[i] for i in batch], config.sampling, rng)
        asked = [prompts[i] for i in batch]
        texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
        scores = score_rollout(rewards, asked, texts, rollout)
        experience = evaluate_rollout(roles, rollout, scores, config, kl_coef)
        with recorder.iteration(iteration + 1, experience, kl_coef, config.minibatches) as steps:
            metrics = improve(roles, optimizers, experience, kl_coef, pretraining_rows, config, orders, steps)
        if config.ema_decay:
            update_ema(averaged, trained, config.ema_decay)
        if config.snapshot_every and (iteration + 1) % config.snapshot_every == 0:
            write_snapshot(snapshot_path(job.directory, iteration + 1), optimizers)

        if config.kl_target is not None:
            kl_coef = adaptive_kl_coef(
                kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.rollout_batch
            )
        if judge is not None:
            metrics |= judge_answers(judge, asked, texts, rollout.ended)
        job.tracker.log(metrics, step=iteration + 1)
        if iteration % math.ceil(config.iterations / TABLES) == 0 or iteration + 1 == config.iterations:
            job.tracker.table("samples", *sample_table(asked, texts, experience), step=iteration + 1)
        bar.set_postfix(score=f"{metrics['objective/score']:.2f}", kl=f"{metrics['objective/kl']:.2f}")

    if config.ema_decay:
        with torch.no_grad():
            for parameter, average in zip(trained, averaged, strict=True):
                parameter.copy_(average)
    roles.save_policy(job.output)
    write_seen_prompts(job.output, prompts)
    return StageResult({"iterations": config.iterations, **metrics}, data)


def begin(config: PpoConfig, parents: Mapping[str, Path], seed: int, device: torch.device) -> tuple[Roles, Optimizers]:
    """The models and their optimisers before the first iteration; the same again from the same seed."""
    torch.manual_seed(seed)  # adapters draw from the global generator
    roles = load_roles(parents["sft"], model_for_values(config.rewards, parents), device, config.lora, seed)
    return roles, {
        "policy": make_optimizer(roles.policy.parameters(), config.optimizer, config.iterations),
        "value": make_optimizer(roles.value.parameters(), config.value_optimizer, config.iterations),
    }


@torch.no_grad()
def evaluate_rollout(
    roles: Roles, rollout: Rollout, scores: RolloutScores, config: PpoConfig, kl_coef: float
) -> Experience:
    """Price the answers' distance from the SFT model, and credit each token."""
    temperature = config.sampling.temperature
    mask = rollout.response_mask
    logprobs, entropy, reference, values = (torch.zeros_like(mask, dtype=torch.float32) for _ in range(4))
    # Without gradients as many rows fit as were sampled at once.
    for index in torch.arange(len(mask), device=mask.device).split(config.sampling.batch_size):
        rows = rollout.rows(index)
        width = rows.response_mask.shape[1]
        logprobs[index, :width], entropy[index, :width] = response_logprobs(roles.policy, rows, temperature)
        with roles.as_reference():
            reference[index, :width] = response_logprobs(roles.reference, rows, temperature).logprobs
        values[index, :width] = response_values(roles.value, rows)
    score = replace_score_without_eos(scores.judged, rollout.ended, config.score_without_eos) + scores.penalties
    rewards, kl = token_rewards(score, logprobs, reference, mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = estimate_advantages(rewards, values, mask, config.gamma, config.gae_lambda)
    return Experience(rollout, score, scores.parts, logprobs, entropy, kl, values, whiten(advantages, mask), returns)


def improve(
    roles: Roles,
    optimizers: Optimizers,
    experience: Experience,
    kl_coef: float,
    pretraining_rows: Iterator[Tensor] | None,
    config: PpoConfig,
    orders: Iterator[Tensor],
    steps: Steps,
) -> dict[str, float]:
    """All of an iteration that changes weights, and what it tells; a replay does the same on recorded experience."""
    (policy_optimizer, policy_schedule), (value_optimizer, value_schedule) = optimizers["policy"], optimizers["value"]
    learning_rate = float(policy_schedule.get_last_lr()[0])
    with checkpointed(config.gradient_checkpointing, roles.policy, roles.value):
        metrics = update(roles, experience, policy_optimizer, value_optimizer, pretraining_rows, config, orders, steps)
    policy_schedule.step()
    value_schedule.step()
    return metrics | describe(experience, kl_coef, learning_rate)


def update(
    roles: Roles,
    experience: Experience,
    policy_optimizer: torch.optim.Optimizer,
    value_optimizer: torch.optim.Optimizer,
    pretraining_rows: Iterator[Tensor] | None,
    config: PpoConfig,
    orders: Iterator[Tensor],
    measured: Steps | None = None,
) -> dict[str, float]:
    """`inner_epochs` passes of `minibatches` optimiser steps each; returns the means of what the steps measured.

    `orders` gives each pass its permutation of the episodes; `measured`, an empty list, is filled step by step.
    """
    measured = [] if measured is None else measured
    for _ in range(config.inner_epochs):
        order = next(orders).to(experience.scores.device)
        for minibatch in order.chunk(config.minibatches):
            # One token count for the whole step: a micro-batch of short answers must not weigh as much as one of long
            # ones.
            n_tokens = int(experience.rollout.response_mask[minibatch].sum())
            step: dict[str, float] = {}
            for index in minibatch.split(micro_batch(config)):
                rows = experience.rollout.rows(index)
                part = (index, slice(0, rows.response_mask.shape[1]))
                new = response_logprobs(roles.policy, rows, config.sampling.temperature)
                policy = clipped_policy_loss(
                    new.logprobs,
                    experience.logprobs[part],
                    experience.advantages[part],
                    rows.response_mask,
                    config.clip_range,
                    n_tokens,
                )
                policy.loss.backward()
                value = clipped_value_loss(
                    response_values(roles.value, rows),
                    experience.values[part],
                    experience.returns[part],
                    rows.response_mask,
                    config.value_clip_range,
                    n_tokens,
                )
                value.loss.backward()
                add_up(step, {f"policy/{name}": x.item() for name, x in policy._asdict().items()})
                add_up(step, {f"value/{name}": x.item() for name, x in value._asdict().items()})
            if not measured:
                check_first_minibatch(step)
            if pretraining_rows is not None:
                loss = pretraining_loss(roles.policy, next(pretraining_rows))
                (config.pretraining_coef * loss).backward()
                step["policy/pretraining_loss"] = loss.item()
            check_step(step, config)
            for name, model, optimizer, limit in (
                ("policy", roles.policy, policy_optimizer, config.optimizer.max_grad_norm),
                ("value", roles.value, value_optimizer, config.value_optimizer.max_grad_norm),
            ):
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
                if not math.isfinite(norm):
                    raise ModelError(
                        f"ppo: the {name} model's gradient is {norm}; lower ppo's learning rates or clip_range."
                    )
                step[f"{name}/grad_norm"] = norm
                optimizer.step()
                optimizer.zero_grad()
            measured.append(step)
    return {name: sum(step[name] for step in measured) / len(measured) for name in measured[0]}


def micro_batch(config: PpoConfig) -> int:
    return config.micro_batch or config.rollout_batch // config.minibatches


def add_up(total: dict[str, float], part: Mapping[str, float]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value


def check_first_minibatch(step: Mapping[str, float]) -> None:
    """Before any weight has changed, new and old log-probabilities are of one model: ratio 1, KL 0, nothing clipped.

    If they differ by more than rounding, sampling and training disagree on temperature, masks, positions or dropout,
    and every later number would be wrong; so the run stops here.
    """
    ratio, kl, clipped = step["policy/mean_ratio"], step["policy/approx_kl"], step["policy/clip_fraction"]
    if abs(ratio - 1) > 1e-3 or kl > 1e-5 or clipped > 0:
        raise ModelError(
            f"ppo: before the first update ratio is {ratio:.6f} (not 1), approx-KL {kl:.2e} (not 0), clip fraction "
            f"{clipped:.4f} (not 0): the model is not the same in training as in sampling."
        )
