"""Stage 3, PPO against the reward model (InstructGPT 3.5 eq. 2, C.4). One prompt's way, top to bottom:

prompts -> rollout -> scores -> per-token rewards -> values -> advantages -> minibatch updates -> metrics -> checkpoint.

We differ from the paper: (1) the value loss is clipped, as in lm-human-preferences; (2) advantages are whitened once
per rollout batch, not per minibatch; (3) gradients are clipped by norm. The score stands on the last real token, and
one mask serves every loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data_schema import Document, Prompt, Records, dedup_prompts, load_all
from policy.advantages import estimate_advantages, masked_mean, whiten
from policy.ema import update_ema
from policy.encoding import decode_responses, encode_prompts
from policy.errors import ModelError
from policy.kl import adaptive_kl_coef, replace_score_without_eos, token_rewards
from policy.language_model import choose_device
from policy.losses import clipped_policy_loss, clipped_value_loss, explained_variance
from policy.pretraining import endless_rows, pack_documents, pretraining_loss
from policy.rollout import Rollout, collect_rollout, response_logprobs
from reward.scalar_model import response_scores, response_values
from stages.configs import PpoConfig
from stages.errors import ConfigError
from stages.job import Job, StageResult, data_account, write_seen_prompts
from stages.judging import load_judge
from stages.optimizer import make_optimizer
from stages.ppo_roles import Roles, load_roles

SAMPLE_ROWS = 8  # rows of a table of samples
TABLES = 10  # tables of samples in a run


class Experience(NamedTuple):
    """A rollout and all that PPO computes from it before it changes a weight. Tensors (batch, response), filler 0,
    but for scores."""

    rollout: Rollout
    scores: Tensor  # (batch,) what the reward is made of: the reward model's, or the penalty for an answer without end
    logprobs: Tensor  # under the policy that sampled
    entropy: Tensor
    kl: Tensor  # k1 per token, nats
    values: Tensor
    advantages: Tensor  # whitened
    returns: Tensor


def run(config: PpoConfig, job: Job) -> StageResult:
    """Improve the SFT model's answers by the reward model's scores; the output is a causal language model."""
    torch.manual_seed(job.seed)
    device = choose_device(config.device)
    roles = load_roles(job.parents["sft"], job.parents["reward_model"], device, config.lora)
    rng = torch.Generator(device).manual_seed(job.seed)
    order_rng = torch.Generator().manual_seed(job.seed)
    judge = load_judge(config.monitor, "ppo.monitor") if config.monitor else None

    prompts, ids, too_long = load_prompts(config, job, roles)
    data = {"prompts": data_account(prompts, too_long=too_long)}
    pretraining_rows = None
    if config.pretraining_coef > 0:
        documents = load_all(config.pretraining_data, Document, job.seed)
        rows = pack_documents(roles.tokenizer, documents, config.pretraining_length)
        pretraining_rows = endless_rows(rows, config.pretraining_rows, order_rng)
        data["pretraining_data"] = data_account(documents)

    policy_optimizer = make_optimizer(roles.policy.parameters(), config.optimizer, config.iterations)
    value_optimizer = make_optimizer(roles.value.parameters(), config.value_optimizer, config.iterations)
    trained = [parameter for parameter in roles.policy.parameters() if parameter.requires_grad]
    averaged = [parameter.detach().clone() for parameter in trained] if config.ema_decay else []
    kl_coef = config.kl_coef
    metrics: dict[str, float] = {}

    bar = tqdm(range(config.iterations), desc="ppo", unit="iteration")
    for iteration, batch in zip(bar, prompt_batches(len(ids), config.rollout_batch, order_rng), strict=False):
        rollout = collect_rollout(
            roles.policy,
            [ids[i] for i in batch],
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            batch_size=config.sampling.batch_size,
            eos_id=roles.tokenizer.eos_token_id,
            pad_id=roles.tokenizer.pad_token_id,
            rng=rng,
        )
        experience = evaluate_rollout(roles, rollout, config, kl_coef)
        learning_rate = float(policy_optimizer[1].get_last_lr()[0])
        metrics = update(
            roles, experience, policy_optimizer[0], value_optimizer[0], pretraining_rows, config, order_rng
        )
        for _, schedule in (policy_optimizer, value_optimizer):
            schedule.step()
        if config.ema_decay:
            update_ema(averaged, trained, config.ema_decay)

        metrics |= describe(experience, kl_coef, learning_rate)
        if config.kl_target is not None:
            kl_coef = adaptive_kl_coef(
                kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.rollout_batch
            )
        texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
        if judge is not None:
            judged = [
                judge(prompts[i].meta, text, end)
                for i, text, end in zip(batch, texts, rollout.ended.tolist(), strict=True)
            ]
            metrics |= {f"monitor/{part}": sum(row[part] for row in judged) / len(judged) for part in judged[0]}
        job.tracker.log(metrics, step=iteration + 1)
        if iteration % math.ceil(config.iterations / TABLES) == 0 or iteration + 1 == config.iterations:
            job.tracker.table(
                "samples", *sample_table([prompts[i] for i in batch], texts, experience), step=iteration + 1
            )
        bar.set_postfix(score=f"{metrics['objective/score']:.2f}", kl=f"{metrics['objective/kl']:.2f}")

    if config.ema_decay:
        with torch.no_grad():
            for parameter, average in zip(trained, averaged, strict=True):
                parameter.copy_(average)
    roles.save_policy(job.output)
    write_seen_prompts(job.output, prompts)
    return StageResult({"iterations": config.iterations, **metrics}, data)


def load_prompts(config: PpoConfig, job: Job, roles: Roles) -> tuple[Records[Prompt], list[list[int]], int]:
    """-> (prompts, their ids, how many were dropped as too long)."""
    prompts = dedup_prompts(load_all(config.prompts, Prompt, job.seed))
    ids = encode_prompts(roles.tokenizer, [prompt.prompt for prompt in prompts])
    kept = [i for i, row in enumerate(ids) if len(row) <= config.max_prompt_length]
    if len(kept) < config.rollout_batch:
        raise ConfigError(
            f"ppo: {len(kept)} prompts (of {len(ids)}, the others longer than {config.max_prompt_length} tokens) are "
            f"fewer than one batch of {config.rollout_batch}; give more prompts or a smaller ppo.rollout_batch"
        )
    return prompts.select(kept), [ids[i] for i in kept], len(ids) - len(kept)


def prompt_batches(n_prompts: int, batch: int, rng: torch.Generator) -> Iterator[list[int]]:
    """Indices of prompts, drawn without replacement; a pass ends where no whole batch is left, and the next is
    reshuffled."""
    while True:
        order = torch.randperm(n_prompts, generator=rng)
        for start in range(0, n_prompts - batch + 1, batch):
            yield order[start : start + batch].tolist()


@torch.no_grad()
def evaluate_rollout(roles: Roles, rollout: Rollout, config: PpoConfig, kl_coef: float) -> Experience:
    """Score the answers, price their distance from the SFT model, and credit each token."""
    temperature = config.sampling.temperature
    mask = rollout.response_mask
    logprobs, entropy, reference, values, scores = (torch.zeros_like(mask, dtype=torch.float32) for _ in range(5))
    # Without gradients as many rows fit as were sampled at once.
    for index in torch.arange(len(mask), device=mask.device).split(config.sampling.batch_size):
        rows = rollout.rows(index)
        width = rows.response_mask.shape[1]
        logprobs[index, :width], entropy[index, :width] = response_logprobs(roles.policy, rows, temperature)
        with roles.as_reference():
            reference[index, :width] = response_logprobs(roles.reference, rows, temperature).logprobs
        values[index, :width] = response_values(roles.value, rows)
        with roles.as_reward():
            scores[index, 0] = response_scores(roles.reward, rows)
    score = replace_score_without_eos(scores[:, 0], rollout.ended, config.score_without_eos)
    rewards, kl = token_rewards(score, logprobs, reference, mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = estimate_advantages(rewards, values, mask, config.gamma, config.gae_lambda)
    return Experience(rollout, score, logprobs, entropy, kl, values, whiten(advantages, mask), returns)


def update(
    roles: Roles,
    experience: Experience,
    policy_optimizer: torch.optim.Optimizer,
    value_optimizer: torch.optim.Optimizer,
    pretraining_rows: Iterator[Tensor] | None,
    config: PpoConfig,
    order_rng: torch.Generator,
) -> dict[str, float]:
    """`inner_epochs` passes of `minibatches` optimiser steps each; returns the means of what the steps measured."""
    n = len(experience.scores)
    measured: list[dict[str, float]] = []
    for _ in range(config.inner_epochs):
        order = torch.randperm(n, generator=order_rng).to(experience.scores.device)
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
    and
    every later number would be wrong; so the run stops here.
    """
    ratio, kl, clipped = step["policy/mean_ratio"], step["policy/approx_kl"], step["policy/clip_fraction"]
    if abs(ratio - 1) > 1e-3 or kl > 1e-5 or clipped > 0:
        raise ModelError(
            f"ppo: before the first update ratio is {ratio:.6f} (not 1), approx-KL {kl:.2e} (not 0), clip fraction "
            f"{clipped:.4f} (not 0): the model is not the same in training as in sampling."
        )


def describe(experience: Experience, kl_coef: float, learning_rate: float) -> dict[str, float]:
    """What to watch (lm-human-preferences' names): objective/* are means over episodes; KL is in nats per episode."""
    mask = experience.rollout.response_mask
    kl = experience.kl.sum(1)
    return {
        "objective/score": float(experience.scores.mean()),
        "objective/score_std": float(experience.scores.std()),
        "objective/reward": float((experience.scores - kl_coef * kl).mean()),
        "objective/kl": float(kl.mean()),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(masked_mean(experience.entropy, mask)),
        "objective/length": float(experience.rollout.lengths.float().mean()),
        "objective/eos_rate": float(experience.rollout.ended.float().mean()),
        "value/explained_variance": float(explained_variance(experience.values, experience.returns, mask)),
        "value/mean": float(masked_mean(experience.values, mask)),
        "value/mean_return": float(masked_mean(experience.returns, mask)),
        "policy/learning_rate": learning_rate,
    }


def sample_table(
    prompts: Sequence[Prompt], texts: Sequence[str], experience: Experience
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of samples with their scores."""
    rows = [
        [prompts[i].prompt[-1].content, texts[i], float(experience.scores[i]), float(experience.kl[i].sum())]
        for i in range(min(SAMPLE_ROWS, len(prompts)))
    ]
    return ["prompt", "response", "score", "kl"], rows
