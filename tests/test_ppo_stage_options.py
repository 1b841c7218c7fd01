"""What PPO does when it is asked for more than its defaults, on the small chain."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain
from test_ppo_stage import (
    UNCLIPPED,
    CountingSgd,
    Updated,
    config_of,
    experienced,
    learning,
    roles_of,
    roll_out,
    run,
    weights,
)
from torch import Tensor

from data_schema import Document, load_all
from policy.language_model import load_language_model
from policy.maths.kl import KlKind
from policy.maths.losses import mean_entropy
from policy.pretraining import GradientBalance, pack_documents, pretraining_loss
from reward.sources import RolloutScores
from stages.ppo import learner as ppo_learner
from stages.ppo.prompts import shuffles
from stages.ppo.stage import describe, evaluate_rollout, update
from stages.ppo.stop import has_gone_far
from stages.settings import OptimizerConfig

CHARGED = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: torch.exp(-log_ratio) - 1 + log_ratio,
}


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_reward_is_charged_the_chosen_estimate_and_the_log_is_of_the_kl_itself(chain: Chain, kind: KlKind) -> None:
    """With gamma and lambda 1 the first return is the score less all that the answer was charged."""
    config = config_of(chain, kl_estimator=kind, kl_coef=0.5, gamma=1.0, gae_lambda=1.0)
    roles = roles_of(chain)
    with torch.no_grad():
        roles.policy.get_input_embeddings().weight.mul_(1.5)  # away from the reference
    found = experienced(chain, roles, roll_out(roles, config), config, 0.5)
    assert found.kl.abs().max() > 0.1
    paid = found.scores - 0.5 * torch.where(found.rollout.response_mask, CHARGED[kind](found.kl), 0.0).sum(1)
    torch.testing.assert_close(found.returns[:, 0], paid, atol=1e-4, rtol=1e-4)
    logged = describe(found, 0.5, 0.1, config.kl_estimator)
    assert logged["objective/reward"] == pytest.approx(paid.mean().item(), rel=1e-4)
    assert logged["objective/kl"] == pytest.approx(found.kl.sum(1).mean().item(), rel=1e-4)
    assert logged["objective/kl_k3"] == pytest.approx(CHARGED["k3"](found.kl).sum(1).mean().item(), rel=1e-3)


def test_the_score_limit_holds_what_was_judged_and_leaves_penalties_alone(chain: Chain) -> None:
    config = config_of(chain, score_clip=1.5, score_without_eos=-3.0)
    roles = roles_of(chain)
    rollout = roll_out(roles, config)
    judged, penalties = torch.linspace(-4, 4, 16), torch.linspace(-9, 0, 16)
    given = RolloutScores(judged, penalties, {})
    scores = evaluate_rollout(roles, rollout, given, config, 0.1).scores
    held = [max(-1.5, min(1.5, score)) if end else -3.0 for score, end in zip(judged, rollout.ended, strict=True)]
    torch.testing.assert_close(scores, torch.tensor(held) + penalties)
    free = evaluate_rollout(roles, rollout, given, replace(config, score_clip=None), 0.1).scores
    assert free[rollout.ended].tolist() == (judged + penalties)[rollout.ended].tolist()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_entropy_bonus_adds_the_gradient_of_the_mean_entropy(chain: Chain, micro_batch: int) -> None:
    settings = {"minibatches": 1, "optimizer": UNCLIPPED, "micro_batch": micro_batch}
    without, with_bonus = (Updated(chain, config_of(chain, entropy_coef=coef, **settings)) for coef in (0.0, 0.5))
    plain, rollout = roles_of(chain).policy.double(), without.experience.rollout
    entropies = []
    for row in range(len(rollout.ended)):
        prompt = rollout.prompts[row][rollout.prompt_mask[row]]
        answer = rollout.responses[row][rollout.response_mask[row]]
        logits = plain(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    mean = torch.cat(entropies).mean()
    mean.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]).float()
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(with_bonus.after[0] - without.after[0], 0.5 * gradient, atol=1e-5, rtol=1e-3)
    assert torch.equal(with_bonus.after[1], without.after[1])  # the value model has no part in it
    assert with_bonus.metrics["policy/entropy"] == pytest.approx(mean.item(), rel=1e-5)
    assert with_bonus.metrics["policy/loss"] == pytest.approx(without.metrics["policy/loss"], abs=1e-6)


def test_mean_entropy_counts_real_tokens_only() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    entropy = torch.tensor([[1.0, 2.0], [6.0, math.nan]])
    assert mean_entropy(entropy, mask).item() == 3.0
    assert mean_entropy(entropy, mask, n_tokens=9).item() == 1.0


@pytest.mark.parametrize(("target", "steps"), [(1e-9, 1), (None, 8), (1e9, 8)])
def test_an_iteration_ends_where_the_policy_is_too_far_from_the_one_that_sampled(
    chain: Chain, target: float | None, steps: int
) -> None:
    no_stop = {"max_ratio": None, "max_approx_kl": None}  # of the run: these steps are huge
    config = config_of(chain, minibatches=4, inner_epochs=2, target_approx_kl=target, **no_stop)
    done = Updated(chain, config)
    assert (done.policy.steps, done.value.steps) == (steps, steps)
    assert done.metrics["policy/optimizer_steps"] == steps
    assert all(parameter.grad is None for parameter in done.roles.policy.parameters())  # nothing for the next iteration


def test_the_stop_leaves_out_the_step_that_would_have_followed(chain: Chain) -> None:
    """The weights are those of the first step alone."""
    stopped = Updated(chain, config_of(chain, minibatches=4, target_approx_kl=1e-9))
    config = config_of(chain, minibatches=4)
    roles = roles_of(chain)
    found = experienced(chain, roles, roll_out(roles, config), config, config.kl_coef)
    first = torch.randperm(16, generator=torch.Generator().manual_seed(0))[:4]
    rows = {name: getattr(found, name)[first] for name in ("scores", "logprobs", "values", "advantages", "returns")}
    alone = found._replace(
        rollout=found.rollout._replace(**{n: x[first] for n, x in found.rollout._asdict().items() if x is not None})
    )
    one = replace(config, minibatches=1)
    learner = learning(roles, one, CountingSgd(roles.policy), CountingSgd(roles.value))
    update(learner, alone._replace(**rows), None, one, shuffles(4, torch.Generator()))
    for model, got in zip((roles.policy, roles.value), stopped.after, strict=True):
        torch.testing.assert_close(got, weights(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kls", "limit", "far"),
    [
        ([1, 2, 9], 1.0, False),  # too few
        ([1, 2, 3, 4], 2.4, True),
        ([1, 2, 3, 4], 2.5, False),  # at the limit is not above it
        ([9, 9, 1, 1, 1, 1], 2.0, False),  # only the last ones count
        ([1, 1, 9, 9, 9, 9], None, False),
    ],
)
def test_a_policy_has_gone_far_when_the_mean_of_its_last_kls_says_so(
    kls: list[float], limit: float | None, far: bool
) -> None:
    assert has_gone_far(kls, limit) == far


def test_a_run_ends_once_the_policy_is_far_from_the_sft_model(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and publishes the policy of a shorter run, bit for bit."""
    caplog.set_level("INFO", "triptych.ppo")
    _, records, _ = run(chain, tmp_path / "whole", iterations=9)
    kls = [record["objective/kl"] for record in records]
    limit = sum(kls[2:6]) / 4 * (1 - 1e-6)
    first = next(n for n in range(4, 10) if sum(kls[n - 4 : n]) / 4 > limit)
    assert first < 9
    stopped, records, result = run(chain, tmp_path / "stopped", iterations=9, stop_at_kl=limit)
    assert any("the last 4 iterations' mean KL" in line and "stop_at_kl" in line for line in caplog.messages)
    short, _, _ = run(chain, tmp_path / "short", iterations=first)
    assert len(records) == first == result.metrics["iterations"]
    assert torch.equal(stopped, short)


def test_while_the_value_model_warms_up_the_policy_keeps_every_bit(chain: Chain, tmp_path: Path) -> None:
    config = config_of(chain)
    roles = roles_of(chain)
    before = weights(roles.policy), weights(roles.value)
    found = experienced(chain, roles, roll_out(roles, config), config, 0.1)
    policy, value = CountingSgd(roles.policy), CountingSgd(roles.value)
    orders = shuffles(config.rollout_batch, torch.Generator())
    update(learning(roles, config, policy, value), found, None, config, orders, policy_learns=False)
    assert torch.equal(weights(roles.policy), before[0]) and policy.steps == 0
    assert (weights(roles.value) - before[1]).abs().max() > 1e-3 and value.steps == config.minibatches

    slow = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=3)
    _, records, _ = run(chain, tmp_path, iterations=4, value_warmup=2, optimizer=slow, kl_target=1.0, kl_coef=0.1)
    distances = [abs(record["objective/kl_k3"]) for record in records]
    assert max(distances[:3]) < 1e-6 < 1e-4 < distances[3]
    # The policy's own warm-up, and the KL coefficient, wait until it learns.
    assert [record["policy/learning_rate"] for record in records] == pytest.approx([0, 0, 1e-3, 4e-3])
    assert [record["objective/kl_coef"] for record in records[:3]] == [0.1] * 3
    assert records[3]["objective/kl_coef"] < 0.1


def test_policy_and_value_model_have_schedules_of_their_own(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def kept(*arguments: Any) -> Any:
        made.append(real(*arguments))
        return made[-1]

    real = ppo_learner.make_optimizer
    monkeypatch.setattr(ppo_learner, "make_optimizer", kept)
    falling = OptimizerConfig(learning_rate=1e-3, schedule="linear")
    rising = OptimizerConfig(learning_rate=2e-3, schedule="constant", warmup_steps=4)
    run(chain, tmp_path, iterations=2, optimizer=falling, value_optimizer=rising)
    # What a third iteration would get.
    policy, value = (optimizer.param_groups[0] for optimizer, _ in made)
    assert (policy["lr"], value["lr"]) == pytest.approx((0.0, 2e-3 * (0.1 + 0.9 * 2 / 4)))
    assert not {id(weight) for weight in policy["params"]} & {id(weight) for weight in value["params"]}


def test_the_pretraining_weight_keeps_its_gradient_in_proportion(chain: Chain) -> None:
    """Against gradients taken one at a time: PPO's without text, the text's by cross-entropy."""
    rows = torch.randint(5, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    config = config_of(chain, minibatches=1, optimizer=UNCLIPPED)
    without = Updated(chain, config)
    ppo_gradient = without.before[0] - without.after[0]
    plain = roles_of(chain).policy
    logits = plain(input_ids=rows).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    text = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])

    roles = roles_of(chain)
    found = experienced(chain, roles, roll_out(roles, config), config, config.kl_coef)
    steps = CountingSgd(roles.policy), CountingSgd(roles.value)
    orders = shuffles(config.rollout_batch, torch.Generator().manual_seed(0))
    learner = learning(roles, config, *steps, GradientBalance(0.25))
    metrics = update(learner, found, iter([rows]), config, orders)
    weight = 0.25 * ppo_gradient.norm() / text.norm()
    change = without.before[0] - weights(roles.policy)
    torch.testing.assert_close(change, ppo_gradient + weight * text, atol=1e-5, rtol=1e-3)
    assert metrics["policy/pretraining_coef"] == pytest.approx(weight.item(), rel=1e-3)
    assert metrics["policy/ppo_grad_norm"] == pytest.approx(ppo_gradient.norm().item(), rel=1e-3)
    assert metrics["policy/pretraining_grad_norm"] == pytest.approx(text.norm().item(), rel=1e-3)


def test_both_norms_are_averaged_over_steps_before_they_are_divided() -> None:
    balance = GradientBalance(ratio=2.0, decay=0.75)
    model = torch.nn.Linear(2, 1, bias=False)

    def step(ppo_gradient: list[float], text_gradient: list[float]) -> tuple[dict[str, float], Tensor]:
        model.weight.grad = torch.tensor([ppo_gradient])
        taken = balance.take(model)
        (model.weight * torch.tensor([text_gradient])).sum().backward()
        return balance.mix(taken, model), model.weight.grad

    logged, gradient = step([3.0, 4.0], [0.0, 10.0])  # norms 5 and 10
    assert logged["policy/pretraining_coef"] == pytest.approx(1.0)
    torch.testing.assert_close(gradient, torch.tensor([[3.0, 14.0]]))
    logged, gradient = step([25.0, 0.0], [10.0, 0.0])  # averaged: 10 and 10
    assert logged["policy/pretraining_coef"] == pytest.approx(2.0)
    assert (logged["policy/ppo_grad_norm"], logged["policy/pretraining_grad_norm"]) == pytest.approx((25.0, 10.0))
    torch.testing.assert_close(gradient, torch.tensor([[45.0, 0.0]]))
    silent = GradientBalance(ratio=1.0)
    model.weight.grad = torch.ones(1, 2)
    taken = silent.take(model)
    (model.weight * 0).sum().backward()
    assert silent.mix(taken, model)["policy/pretraining_coef"] == 0
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 2))


def test_a_run_with_the_gradient_ratio_logs_weight_and_norms(chain: Chain, tmp_path: Path) -> None:
    _, records, _ = run(chain, tmp_path, pretraining_gradient_ratio=0.5)
    assert all(record["policy/pretraining_coef"] > 0 for record in records)
    # The text's gradient is in the norm that is clipped, half of PPO's as it is, at an unknown angle.
    for record in records:
        near = record["policy/grad_norm"] / record["policy/ppo_grad_norm"]
        assert 0.25 < near < 2


def test_the_papers_pretraining_weight_of_27_8_does_not_diverge(chain: Chain, tmp_path: Path) -> None:
    """Far more gradient than PPO's own: every step is held to the bound, and the model reads the text better."""
    rows = torch.randint(5, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    done = Updated(chain, config_of(chain, minibatches=1, pretraining_coef=27.8), pretraining=rows)
    assert done.metrics["policy/grad_norm"] > 5
    assert (done.after[0] - done.before[0]).norm().item() == pytest.approx(1.0, rel=1e-3)

    _, records, _ = run(chain, tmp_path, iterations=6, pretraining_coef=27.8)
    assert all(math.isfinite(number) for record in records for number in record.values())
    assert abs(records[-1]["objective/kl"]) < 20
    sft, tokenizer = load_language_model(chain.checkpoint("sft"), torch.device("cpu"))
    text = pack_documents(tokenizer, load_all(config_of(chain).pretraining_data, Document, 0), 16)
    published = load_language_model(tmp_path / "output", torch.device("cpu")).model
    with torch.no_grad():
        assert pretraining_loss(published, text) < pretraining_loss(sft, text) - 0.02
