"""PPO on the small chain. Comments say which mistake of an earlier, widely used PPO trainer a test would catch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job
from torch import Tensor

from data_schema import Prompt, load_all
from pipeline.recipe import load_recipe
from policy.encoding import decode_responses, encode_prompts
from policy.errors import ModelError
from policy.sampling.rollout import Rollout, collect_rollout
from reward.scoring import score_responses
from reward.sources import score_rollout
from stages.ppo import stage as ppo
from stages.ppo.experience import Experience
from stages.ppo.learner import Learner
from stages.ppo.out_of_memory import rows_that_fit
from stages.ppo.prompts import shuffles
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import describe, evaluate_rollout, prompt_batches, update
from stages.settings import OptimizerConfig

CPU = torch.device("cpu")
UNCLIPPED = OptimizerConfig(max_grad_norm=1e9)


def config_of(chain: Chain, **changes: Any) -> PpoConfig:
    return replace(load_recipe(chain.path).ppo, **changes)


def roles_of(chain: Chain, sft: Path | None = None) -> Roles:
    return load_roles(sft or chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None)


def roll_out(roles: Roles, config: PpoConfig, seed: int = 0) -> Rollout:
    prompts = load_all(config.prompts, Prompt, seed)
    ids = encode_prompts(roles.tokenizer, [prompts[i].prompt for i in range(config.rollout_batch)])
    return collect_rollout(
        roles.policy,
        ids,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        batch_size=config.sampling.batch_size,
        stop_ids=[roles.tokenizer.eos_token_id],
        pad_id=roles.tokenizer.pad_token_id,
        rng=torch.Generator().manual_seed(seed),
    )


def experienced(chain: Chain, roles: Roles, rollout: Rollout, config: PpoConfig, kl_coef: float) -> Experience:
    """The rollout, scored by the reward model and evaluated."""
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    rewards = load_ppo_rewards(config, job(Path(), parents), roles)
    prompts = [load_all(config.prompts, Prompt, 0)[i] for i in range(config.rollout_batch)]
    texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
    return evaluate_rollout(roles, rollout, score_rollout(rewards, prompts, texts, rollout), config, kl_coef)


class CountingSgd(torch.optim.SGD):
    """Plain gradient steps, so that a weight's change is its gradient; counts them."""

    def __init__(self, model: torch.nn.Module, lr: float = 1.0) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        super().step(closure)


def learning(roles: Roles, config: PpoConfig, policy: Any, value: Any, balance: Any = None) -> Learner:
    """Optimisers without a schedule."""
    return Learner(roles, {"policy": (policy, None), "value": (value, None)}, balance, rows_that_fit(config))


class Updated:
    """The small chain's models after one `update`."""

    def __init__(self, chain: Chain, config: PpoConfig, lr: float = 1.0, pretraining: Tensor | None = None) -> None:
        self.roles = roles_of(chain)
        self.before = weights(self.roles.policy), weights(self.roles.value)
        self.experience = experienced(chain, self.roles, roll_out(self.roles, config), config, config.kl_coef)
        self.policy, self.value = CountingSgd(self.roles.policy, lr), CountingSgd(self.roles.value, lr)
        rows = None if pretraining is None else iter([pretraining] * 99)
        orders = shuffles(config.rollout_batch, torch.Generator().manual_seed(0))
        learner = learning(self.roles, config, self.policy, self.value)
        self.metrics = update(learner, self.experience, rows, config, orders)
        self.after = weights(self.roles.policy), weights(self.roles.value)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def experience(chain: Chain) -> tuple[Roles, Experience, PpoConfig]:
    """Gamma one half and lambda 1, so that a return tells how far away the score stands; no KL in it."""
    config = config_of(chain, gamma=0.5, gae_lambda=1.0, kl_coef=0.0, rollout_batch=32, score_without_eos=-3.0)
    roles = roles_of(chain)
    found = experienced(chain, roles, roll_out(roles, config), config, 0.0)
    assert 0 < int(found.rollout.ended.sum()) < 32  # both kinds are there
    return roles, found, config


def test_the_score_stands_on_the_last_real_token_of_short_and_of_cut_answers(
    experience: tuple[Roles, Experience, PpoConfig],
) -> None:
    """Catches: the reward of a short answer was put one slot after its EOS, on the first padding token."""
    _, found, _ = experience
    mask, lengths = found.rollout.response_mask, found.rollout.lengths
    distance = (lengths.unsqueeze(1) - 1 - torch.arange(mask.shape[1])).clamp(min=0)
    expected = torch.where(mask, found.scores.unsqueeze(1) * 0.5**distance, 0.0)
    torch.testing.assert_close(found.returns, expected, atol=1e-5, rtol=1e-5)


def test_an_answer_without_end_has_its_score_replaced_not_lowered(
    experience: tuple[Roles, Experience, PpoConfig],
) -> None:
    """Catches: a constant was subtracted, so a long enough good answer could gain by never ending."""
    roles, found, _ = experience
    ended = found.rollout.ended
    assert (found.scores[~ended] == -3.0).all()
    prompts = [ids[mask].tolist() for ids, mask in zip(found.rollout.prompts, found.rollout.prompt_mask, strict=True)]
    answers = [
        ids[mask].tolist() for ids, mask in zip(found.rollout.responses, found.rollout.response_mask, strict=True)
    ]
    alone = score_responses(roles.reward, prompts, answers, roles.tokenizer.pad_token_id, batch_size=1)
    torch.testing.assert_close(found.scores[ended], alone[ended], atol=1e-4, rtol=1e-4)


def test_eos_is_a_real_token_of_every_answer_that_ended(experience: tuple[Roles, Experience, PpoConfig]) -> None:
    """Catches: masks were taken from ids other than padding, so with padding = EOS the end was never learned."""
    roles, found, _ = experience
    last = found.rollout.responses.gather(1, found.rollout.lengths.unsqueeze(1) - 1).squeeze(1)
    assert ((last == roles.tokenizer.eos_token_id) == found.rollout.ended).all()
    at_the_end = found.logprobs.gather(1, found.rollout.lengths.unsqueeze(1) - 1)
    assert (at_the_end < 0).all()


def test_what_is_logged_is_a_mean_over_real_tokens_only(experience: tuple[Roles, Experience, PpoConfig]) -> None:
    """Catches: entropy, ratio and approximate KL were averaged over the padding as well."""
    roles, found, _ = experience
    entropies, answers = [], found.rollout
    for row in range(len(answers.ended)):
        prompt = answers.prompts[row][answers.prompt_mask[row]]
        answer = answers.responses[row][answers.response_mask[row]]
        with torch.no_grad():
            logits = roles.policy(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    logged = describe(found, 0.0, 0.1)
    assert logged["objective/entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-4)
    assert logged["objective/eos_rate"] == pytest.approx(answers.ended.double().mean().item())
    assert logged["objective/length"] == pytest.approx(sum(map(len, entropies)) / len(entropies))
    assert logged["objective/score"] == pytest.approx(found.scores.double().mean().item(), rel=1e-5)


def test_the_policy_s_advantages_are_white_over_real_tokens(experience: tuple[Roles, Experience, PpoConfig]) -> None:
    _, found, _ = experience
    real = found.advantages[found.rollout.response_mask]
    assert real.mean().item() == pytest.approx(0, abs=1e-5)
    assert real.var(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert (found.advantages[~found.rollout.response_mask] == 0).all()


def test_before_the_first_update_nothing_differs_from_the_sft_model(chain: Chain) -> None:
    done = Updated(chain, config_of(chain), lr=0.0)
    assert done.metrics["policy/mean_ratio"] == pytest.approx(1, abs=1e-5)
    assert done.metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-8)
    assert done.metrics["policy/clip_fraction"] == 0
    torch.testing.assert_close(done.experience.kl, torch.zeros_like(done.experience.kl), atol=1e-5, rtol=0)


def test_a_checkpoint_s_sampling_habits_and_dropout_do_not_reach_ppo(chain: Chain, tmp_path: Path) -> None:
    """Catches: log-probabilities taken from processed generation scores, so a repetition penalty was a false KL."""
    sft = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / "sft"))
    habits = {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 5, "top_p": 0.5, "do_sample": True}
    for name, change in (("generation_config.json", habits), ("config.json", {"attention_dropout": 0.5})):
        settings = json.loads((sft / name).read_text())
        (sft / name).write_text(json.dumps({**settings, **change}))
    config = config_of(chain)
    plain, habitual = roles_of(chain), roles_of(chain, sft)
    assert habitual.policy.config.attention_dropout == 0.5
    rollouts = [roll_out(roles, config) for roles in (plain, habitual)]
    assert torch.equal(rollouts[0].responses, rollouts[1].responses)
    found = experienced(chain, habitual, rollouts[1], config, 0.1)
    torch.testing.assert_close(found.kl, torch.zeros_like(found.kl), atol=1e-5, rtol=0)
    learner = learning(habitual, config, CountingSgd(habitual.policy, 0), CountingSgd(habitual.value, 0))
    metrics = update(learner, found, None, config, shuffles(config.rollout_batch, torch.Generator()))
    assert metrics["policy/mean_ratio"] == pytest.approx(1, abs=1e-5)


def test_the_run_stops_when_sampling_and_training_disagree(chain: Chain) -> None:
    config = config_of(chain)
    roles = roles_of(chain)
    found = experienced(chain, roles, roll_out(roles, config), config, 0.1)
    tampered = found._replace(logprobs=torch.where(found.rollout.response_mask, found.logprobs - 0.02, 0.0))
    before = weights(roles.policy)
    with pytest.raises(ModelError, match=r"ratio is 1\.02.*gives other probabilities than in sampling"):
        orders = shuffles(config.rollout_batch, torch.Generator())
        learner = learning(roles, config, CountingSgd(roles.policy), CountingSgd(roles.value))
        update(learner, tampered, None, config, orders)
    assert torch.equal(weights(roles.policy), before)


@pytest.mark.parametrize(("inner_epochs", "minibatches"), [(1, 1), (1, 8), (4, 1), (2, 4)])
def test_there_are_inner_epochs_times_minibatches_optimiser_steps(
    chain: Chain, inner_epochs: int, minibatches: int
) -> None:
    """Catches: the number of minibatches changed nothing but the averages in the log; and where the data set was one
    batch, every micro-batch took a step of its own."""
    config = config_of(chain, inner_epochs=inner_epochs, minibatches=minibatches, micro_batch=2)
    done = Updated(chain, config, lr=0.0)
    assert (done.policy.steps, done.value.steps) == (inner_epochs * minibatches,) * 2
    # Averages are over steps, whatever their number: at a rate of 0 every ratio is 1.
    assert done.metrics["policy/mean_ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_memory_and_not_the_weights(chain: Chain, micro_batch: int) -> None:
    """Catches: the loss was a mean per micro-batch, so that tokens of short answers weighed more."""
    whole = Updated(chain, config_of(chain, optimizer=UNCLIPPED))
    parts = Updated(chain, config_of(chain, optimizer=UNCLIPPED, micro_batch=micro_batch))
    for expected, got, before in zip(whole.after, parts.after, whole.before, strict=True):
        assert (expected - before).abs().max() > 1e-3  # something was learned
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for name, number in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name


def test_max_grad_norm_bounds_each_step(chain: Chain) -> None:
    """Catches: the setting was accepted and gradients were never clipped."""
    limits = {
        name: OptimizerConfig(max_grad_norm=limit) for name, limit in (("optimizer", 1e-3), ("value_optimizer", 2e-3))
    }
    done = Updated(chain, config_of(chain, minibatches=1, **limits))
    for after, before, limit, name in zip(done.after, done.before, (1e-3, 2e-3), ("policy", "value"), strict=True):
        assert (after - before).norm().item() == pytest.approx(limit, rel=1e-2)
        assert done.metrics[f"{name}/grad_norm"] > limit  # what is logged is the norm before clipping


def test_the_pretraining_gradient_is_added_to_that_of_ppo(chain: Chain) -> None:
    rows = torch.randint(5, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    config = config_of(chain, minibatches=1, optimizer=UNCLIPPED, pretraining_coef=0.5)
    without, with_text = Updated(chain, config), Updated(chain, config, pretraining=rows)
    plain = roles_of(chain).policy
    logits = plain(input_ids=rows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    torch.testing.assert_close(with_text.after[0] - without.after[0], -0.5 * gradient, atol=1e-5, rtol=1e-3)
    assert torch.equal(with_text.after[1], without.after[1])  # the value model reads no pretraining text
    assert with_text.metrics["policy/pretraining_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_prompts_are_drawn_without_replacement_and_a_pass_of_one_batch_goes_on() -> None:
    """Catches: a data set smaller than a batch looped for ever; here one batch a pass works, and fewer are refused."""
    batches = prompt_batches(10, 4, torch.Generator().manual_seed(0))
    passes = [[*next(batches), *next(batches)] for _ in range(20)]
    assert all(len(set(drawn)) == 8 for drawn in passes)
    assert {i for drawn in passes for i in drawn} == set(range(10))
    assert len({tuple(drawn) for drawn in passes}) > 1
    single = prompt_batches(4, 4, torch.Generator().manual_seed(0))
    assert all(sorted(next(single)) == [0, 1, 2, 3] for _ in range(3))


def run(chain: Chain, folder: Path, **changes: Any) -> tuple[Tensor, list[dict[str, float]], Any]:
    """-> (published weights, what was logged, the stage's result)."""
    from transformers import AutoModelForCausalLM

    given = job(folder, {role: chain.checkpoint(role) for role in ("sft", "reward_model")})
    result = ppo.run(config_of(chain, **{"pretraining_coef": 0.0, "monitor": None, **changes}), given)
    return weights(AutoModelForCausalLM.from_pretrained(folder / "output")), given.tracker.records, result


def test_the_adaptive_kl_coefficient_moves_by_its_law(chain: Chain, tmp_path: Path) -> None:
    _, records, _ = run(chain, tmp_path, kl_coef=0.1, kl_target=5.0, kl_horizon=32, iterations=3)
    # KL is far below 5 nats, so each 16 of 32 episodes take off half of 20 %.
    assert [record["objective/kl_coef"] for record in records] == pytest.approx([0.1, 0.09, 0.081])
    assert [record["step"] for record in records] == [1, 2, 3]


def test_the_moving_average_of_the_weights_is_what_is_published(chain: Chain, tmp_path: Path) -> None:
    start = weights(roles_of(chain).policy)
    last, _, _ = run(chain, tmp_path / "last", iterations=1)
    average, _, _ = run(chain, tmp_path / "average", iterations=1, ema_decay=0.75)
    assert (last - start).abs().max() > 1e-4
    torch.testing.assert_close(average, 0.75 * start + 0.25 * last, atol=1e-6, rtol=0)


def test_a_long_prompt_is_dropped_and_counted_and_doubles_are_asked_once(chain: Chain, tmp_path: Path) -> None:
    config = config_of(chain)
    ids = encode_prompts(roles_of(chain).tokenizer, [prompt.prompt for prompt in load_all(config.prompts, Prompt, 0)])
    limit = sorted(set(map(len, ids)))[-2]
    doubled = [*config.prompts, *config.prompts]
    _, _, result = run(chain, tmp_path, iterations=1, prompts=doubled, max_prompt_length=limit)
    account = result.data["prompts"]
    too_long = len({tuple(row) for row in ids if len(row) > limit})
    assert account["dropped"]["too long"] == too_long > 0
    assert account["records"] + too_long == len({tuple(row) for row in ids})
