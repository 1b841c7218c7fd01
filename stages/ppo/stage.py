"""Stage 3, PPO against the reward model (InstructGPT 3.5 eq. 2, C.4). Top to bottom, a prompt passes through:

prompts -> rollout -> scores -> per-token rewards -> values -> advantages -> minibatch updates -> metrics -> checkpoint.

Differences from the paper: (1) the value loss is clipped, as in lm-human-preferences; (2) advantages are whitened once
per rollout, not per minibatch; (3) gradients are clipped by norm. The score is added to the reward of the last real
token. All losses use the same mask of real response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from data_schema import Document, load_all
from policy.encoding import decode_responses
from policy.maths.advantages import estimate_advantages, whiten
from policy.maths.ema import update_ema
from policy.maths.kl import adaptive_kl_coef, kl_estimate, replace_score_without_eos, token_rewards
from policy.maths.losses import clipped_policy_loss, clipped_value_loss, mean_entropy
from policy.memory.checkpointing import checkpointed
from policy.pretraining import GradientBalance, endless_rows, pack_documents, pretraining_loss, trained
from policy.sampling.rollout import Rollout, response_logprobs
from reward.scalar_model import response_values
from reward.sources import RolloutScores, score_rollout
from stages.answering import sample_answers
from stages.doubts import warn
from stages.job import Job, StageResult, data_account, write_seen_prompts
from stages.judging import load_judge
from stages.ppo.doubts import Doubts, lost_prompts
from stages.ppo.experience import Experience
from stages.ppo.learner import Learner, begin, take_step
from stages.ppo.metrics import TABLES, add_up, describe, judge_answers, means_of, numbers, sample_table
from stages.ppo.out_of_memory import RowsThatFit, micro_batch, rows_that_fit
from stages.ppo.prompts import load_prompts, prompt_batches, shuffles
from stages.ppo.record import Recorder, Steps, snapshot_path, write_snapshot
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import Roles, decided_here
from stages.ppo.settings import PpoConfig
from stages.ppo.stop import check_first_minibatch, check_step, has_gone_far
from stages.progress import progress


def run(config: PpoConfig, job: Job) -> StageResult:
    """Train the SFT model with PPO to maximise the rewards of its answers; the output is a causal language model."""
    config, device = decided_here(config, job.parents["sft"])
    learner = begin(config, job.parents, job.seed, device)
    roles = learner.roles
    recorder = Recorder(config, job, device, roles.tokenizer.pad_token_id, learner.fits)
    rewards = load_ppo_rewards(config, job, roles)
    rng = torch.Generator(device).manual_seed(job.seed)
    order_rng = torch.Generator().manual_seed(job.seed)
    judge = load_judge(config.monitor, "ppo.monitor") if config.monitor else None

    adapters_reach = roles.adapters_reach()
    prompts, ids, too_long = load_prompts(config, job.seed, roles.tokenizer)
    data = {"prompts": data_account(prompts, too_long=too_long)}
    warn(job.tracker, lost_prompts(config, data["prompts"]))
    pretraining_rows = None
    if config.mixes_text:
        documents = load_all(config.pretraining_data, Document, job.seed)
        rows = pack_documents(roles.tokenizer, documents, config.pretraining_length)
        pretraining_rows = recorder.text(endless_rows(rows, config.pretraining_rows, order_rng))
        data["pretraining_data"] = data_account(documents)

    orders = recorder.orders(shuffles(config.rollout_batch, order_rng))
    learned = trained(roles.policy)
    averaged = [parameter.detach().clone() for parameter in learned] if config.ema_decay else []
    kl_coef = config.kl_coef
    doubts = Doubts(config, job.tracker, roles.tokenizer)
    metrics: dict[str, float] = {}
    kls: list[float] = []

    bar = progress(range(1, config.iterations + 1), desc="ppo", unit="iteration")
    for iteration, batch in zip(bar, prompt_batches(len(ids), config.rollout_batch, order_rng), strict=False):
        with recorder.sampling(iteration):
            rollout = sample_answers(roles.policy, roles.tokenizer, [ids[i] for i in batch], config.sampling, rng)
        asked = [prompts[i] for i in batch]
        texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
        rollout = roles.read_trunk(rollout, config, learner.fits.trunk, job.directory)
        scores = score_rollout(rewards, asked, texts, rollout)
        experience = evaluate_rollout(roles, rollout, scores, config, kl_coef, learner.fits)
        with recorder.iteration(iteration, experience, kl_coef, config.minibatches) as steps:
            metrics = improve(learner, experience, kl_coef, pretraining_rows, config, orders, iteration, steps)
        rollout = rollout._replace(below=None)  # the trunk's states go before the next iteration's are made
        experience = experience._replace(rollout=rollout)
        if config.ema_decay:
            update_ema(averaged, learned, config.ema_decay)
        if config.snapshot_every and iteration % config.snapshot_every == 0:
            write_snapshot(snapshot_path(job.directory, iteration), learner.optimizers, learner.balance)
        if config.kl_target is not None and iteration > config.value_warmup:
            kl_coef = adaptive_kl_coef(
                kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.rollout_batch
            )
        if judge is not None:
            metrics |= judge_answers(judge, asked, texts, rollout.ended)
        job.tracker.log(metrics, step=iteration)
        doubts.seen(iteration, experience, metrics, texts)
        kls.append(metrics["objective/kl"])
        is_last = iteration == config.iterations or has_gone_far(kls, config.stop_at_kl)
        if (iteration - 1) % math.ceil(config.iterations / TABLES) == 0 or is_last:
            job.tracker.table("samples", *sample_table(asked, texts, experience), step=iteration)
        bar.set_postfix(score=f"{metrics['objective/score']:.2f}", kl=f"{metrics['objective/kl']:.2f}")
        if is_last:
            break

    if config.ema_decay:
        with torch.no_grad():
            for parameter, average in zip(learned, averaged, strict=True):
                parameter.copy_(average)
    roles.save_policy(job.output)
    write_seen_prompts(job.output, prompts)
    adapters = {"lora": adapters_reach} if adapters_reach else {}
    return StageResult({"iterations": len(kls), "precision": config.precision, **adapters, **metrics}, data)


@torch.no_grad()
def evaluate_rollout(
    roles: Roles,
    rollout: Rollout,
    scores: RolloutScores,
    config: PpoConfig,
    kl_coef: float,
    fits: RowsThatFit | None = None,
) -> Experience:
    """Turn a rollout and its scores into token rewards (score minus KL penalty), values, advantages and returns."""
    temperature = config.sampling.temperature
    mask = rollout.response_mask
    dtype = torch.promote_types(roles.policy.dtype, torch.float32)
    logprobs, entropy, reference, values = (torch.zeros_like(mask, dtype=dtype) for _ in range(4))

    def read(rows_at_once: int) -> None:
        everyone = torch.arange(len(mask), device=mask.device)
        for rows, part in micro_batches(rollout, everyone, rows_at_once):
            logprobs[part], entropy[part] = response_logprobs(roles.policy, rows, temperature)
            values[part] = response_values(roles.value, rows)
        with roles.as_reference():
            for rows, part in micro_batches(rollout, everyone, rows_at_once):
                reference[part] = response_logprobs(roles.reference, rows, temperature).logprobs

    (fits or rows_that_fit(config)).reading.do(read)
    limit = config.score_clip
    judged = scores.judged if limit is None else scores.judged.clamp(-limit, limit)
    score = replace_score_without_eos(judged, rollout.ended, config.score_without_eos) + scores.penalties
    kl = torch.where(mask, kl_estimate(logprobs, reference, "k1"), 0.0)
    rewards = token_rewards(score, logprobs, reference, mask, kl_coef, config.kl_estimator).rewards
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = estimate_advantages(rewards, values, mask, config.gamma, config.gae_lambda)
    return Experience(rollout, score, scores.parts, logprobs, entropy, kl, values, whiten(advantages, mask), returns)


def improve(
    learner: Learner,
    experience: Experience,
    kl_coef: float,
    pretraining_rows: Iterator[Tensor] | None,
    config: PpoConfig,
    orders: Iterator[Tensor],
    iteration: int,
    steps: Steps,
) -> dict[str, float]:
    """Update the models on one iteration's experience; returns its metrics. Replay calls it on recorded experience."""
    policy_learns = iteration > config.value_warmup
    learning_rate = float(learner.optimizers["policy"][1].get_last_lr()[0]) if policy_learns else 0.0
    with checkpointed(config.gradient_checkpointing, learner.roles.policy, learner.roles.value):
        metrics = update(learner, experience, pretraining_rows, config, orders, steps, policy_learns)
    for role, (_, schedule) in learner.optimizers.items():
        if policy_learns or role != "policy":
            schedule.step()
    return metrics | describe(experience, kl_coef, learning_rate, config.kl_estimator)


def update(
    learner: Learner,
    experience: Experience,
    pretraining_rows: Iterator[Tensor] | None,
    config: PpoConfig,
    orders: Iterator[Tensor],
    measured: Steps | None = None,
    policy_learns: bool = True,
) -> dict[str, float]:
    """Make `inner_epochs` passes of `minibatches` optimiser steps each, or stop early (`target_approx_kl`); returns the
    means over steps of their metrics. `orders` yields a permutation of the episodes for each pass; `measured`, an empty
    list, receives each step's metrics. Without `policy_learns` only the value model takes steps."""
    measured = [] if measured is None else measured
    roles, fits = learner.roles, learner.fits
    for _ in range(config.inner_epochs):
        order = next(orders).to(experience.scores.device)
        for minibatch in order.chunk(config.minibatches):
            text = None if pretraining_rows is None else next(pretraining_rows)
            # One model after the other, so that their gradients and activations are never in memory together.
            work = partial(policy_gradient, roles, experience, minibatch, text, config, learner.balance)
            step = fits.update.do(work, roles.policy)
            if not measured:
                check_first_minibatch(step, config.precision)
            check_step(step, config)
            # Measured before this minibatch's own step, so this is the effect of the earlier steps.
            if measured and step["policy/approx_kl_k3"] > (config.target_approx_kl or math.inf):
                roles.policy.zero_grad()
                return means_of(measured)
            take_step(learner, "policy", config.optimizer.max_grad_norm, step, policy_learns)
            step |= fits.update.do(partial(value_gradient, roles, experience, minibatch, config), roles.value)
            check_step(step, config)
            take_step(learner, "value", config.value_optimizer.max_grad_norm, step)
            measured.append(step)
    return means_of(measured)


def micro_batches(
    rollout: Rollout, minibatch: Tensor, rows_at_once: int
) -> Iterator[tuple[Rollout, tuple[Tensor, slice]]]:
    """Yield a few episodes at a time, each with the index of its rows and columns in the tensors of Experience."""
    for index in minibatch.split(rows_at_once):
        rows = rollout.rows(index)
        yield rows, (index, slice(0, rows.response_mask.shape[1]))


def policy_gradient(
    roles: Roles,
    experience: Experience,
    minibatch: Tensor,
    text: Tensor | None,
    config: PpoConfig,
    balance: GradientBalance | None,
    rows_at_once: int,
) -> dict[str, float]:
    """Accumulate the policy's gradient of one optimiser step, a few episodes at a time; returns the step's metrics."""
    # Divide by the whole step's token count: a micro-batch of short answers must not weigh as much as one of long ones.
    n_tokens = int(experience.rollout.response_mask[minibatch].sum())
    step: dict[str, float] = {}
    for rows, part in micro_batches(experience.rollout, minibatch, rows_at_once):
        new = response_logprobs(roles.policy, rows, config.sampling.temperature, config.entropy_coef > 0)
        policy = clipped_policy_loss(
            new.logprobs,
            experience.logprobs[part],
            experience.advantages[part],
            rows.response_mask,
            config.clip_range,
            n_tokens,
        )
        entropy = mean_entropy(new.entropy, rows.response_mask, n_tokens)
        (policy.loss - config.entropy_coef * entropy if config.entropy_coef > 0 else policy.loss).backward()
        measured = policy._asdict() | {"entropy": entropy}
        add_up(step, {f"policy/{name}": x for name, x in numbers(measured).items()})
    if text is not None:
        ppo_gradient = balance.take(roles.policy) if balance else []
        # Split into as many pieces as the episodes. All rows are equally long, so a piece is weighted by its rows.
        for piece in text.split(max(1, len(text) * rows_at_once // micro_batch(config))):
            loss = pretraining_loss(roles.policy, piece) * (len(piece) / len(text))
            ((1.0 if balance else config.pretraining_coef) * loss).backward()
            add_up(step, {"policy/pretraining_loss": loss.item()})
        if balance:
            step |= balance.mix(ppo_gradient, roles.policy)
    return step


def value_gradient(
    roles: Roles, experience: Experience, minibatch: Tensor, config: PpoConfig, rows_at_once: int
) -> dict[str, float]:
    """Accumulate the value model's gradient in the same way; returns the step's metrics."""
    n_tokens = int(experience.rollout.response_mask[minibatch].sum())
    step: dict[str, float] = {}
    for rows, part in micro_batches(experience.rollout, minibatch, rows_at_once):
        values, old, returns = response_values(roles.value, rows), experience.values[part], experience.returns[part]
        value = clipped_value_loss(values, old, returns, rows.response_mask, config.value_clip_range, n_tokens)
        value.loss.backward()
        add_up(step, {f"value/{name}": x for name, x in numbers(value._asdict()).items()})
    return step
