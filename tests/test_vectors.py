"""The maths against known answers, worked out by plain loops in float64 (tests/vectors.json)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.maths.advantages import estimate_advantages, masked_mean, masked_var, whiten
from policy.maths.ema import update_ema
from policy.maths.kl import adaptive_kl_coef, kl_estimate, replace_score_without_eos, token_rewards
from policy.maths.logprobs import entropy, token_logprobs
from policy.maths.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    next_token_loss,
    policy_token_losses,
    ppo_loss,
    value_token_losses,
)
from policy.maths.masks import mask_from_lengths, position_ids, truncate_after_token
from policy.maths.schedules import cosine_to_fraction, linear_to_zero, warmup_from_fraction
from reward.normalisation import from_demonstrations, from_reference_samples
from reward.overoptimisation import (
    best_of_n_form,
    best_of_n_kl,
    best_of_n_means,
    best_of_n_optimum,
    rl_form,
    rl_optimum,
)
from reward.ranking_loss import (
    best_of_n_cross_entropy,
    kwise_ranking_loss,
    pair_accuracy,
    pair_index,
    pairwise_loss,
    ranked_pairs,
)
from stages.statistics import win_rate

VECTORS = {v["id"]: v for v in json.loads(Path(__file__).with_name("vectors.json").read_text())["vectors"]}
USED: set[str] = set()


def vector(name: str) -> pytest.MarkDecorator:
    """Give a test the inputs `x` and the expected values `want` of one vector."""
    USED.add(name)
    return pytest.mark.parametrize("x, want", [(VECTORS[name]["inputs"], VECTORS[name]["expected"])], ids=[name])


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def assert_same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want, dtype=np.float64), rtol=1e-10, atol=1e-12)


def test_every_vector_is_used() -> None:
    assert set(VECTORS) == USED


@vector("masked_mean")
def test_masked_means(x: Any, want: Any) -> None:
    values, kept = real(x["values"]), mask(x["mask"])
    assert_same(masked_mean(values, kept), want["token_mean"])
    assert_same(masked_mean(values, kept, dim=1), want["row_means"])
    assert_same(masked_mean(values, kept, dim=1).mean(), want["mean_of_row_means"])
    assert_same(masked_var(values, kept), want["masked_var_population"])


@vector("whiten_unmasked")
def test_whitening_without_a_mask(x: Any, want: Any) -> None:
    assert_same(whiten(real(x["values"]), eps=x["eps"]), want["shift_mean_true"])
    assert_same(whiten(real(x["values"]), shift_mean=False, eps=x["eps"]), want["shift_mean_false"])


@vector("whiten_masked")
def test_whitening_under_a_mask(x: Any, want: Any) -> None:
    assert_same(whiten(real(x["values"]), mask(x["mask"]), eps=x["eps"]), want["shift_mean_true"])
    assert_same(whiten(real(x["values"]), mask(x["mask"]), shift_mean=False, eps=x["eps"]), want["shift_mean_false"])


@vector("gae_unmasked")
def test_advantages_of_full_length_responses(x: Any, want: Any) -> None:
    rewards, values = real(x["rewards"]), real(x["values"])
    everything = torch.ones_like(values, dtype=torch.bool)
    for name, gamma, lam in [("gamma1_lam0.95", 1, 0.95), ("gamma0.99_lam0.9", 0.99, 0.9)]:
        advantages, returns = estimate_advantages(rewards, values, everything, gamma, lam)
        assert_same(advantages, want[name]["advantages"])
        assert_same(returns, want[name]["returns"])


@vector("gae_masked")
def test_advantages_of_responses_that_end_early(x: Any, want: Any) -> None:
    settings = {
        "gamma1_lam0.95": (1, 0.95),
        "gamma1_lam1": (1, 1),
        "gamma0.99_lam0.9": (0.99, 0.9),
        "gamma1_lam0": (1, 0),
    }
    assert set(settings) == set(want)
    for name, (gamma, lam) in settings.items():
        advantages, returns = estimate_advantages(real(x["rewards"]), real(x["values"]), mask(x["mask"]), gamma, lam)
        assert_same(advantages, want[name]["advantages"])
        assert_same(returns, want[name]["returns"])


@vector("token_rewards_terminal_score")
def test_rewards_per_token_at_both_score_positions(x: Any, want: Any) -> None:
    scores, logprobs, ref = real(x["scores"]), real(x["logprobs"]), real(x["ref_logprobs"])
    response_mask = mask_from_lengths(torch.tensor(x["lengths"]), logprobs.shape[1])
    on_last = token_rewards(scores, logprobs, ref, response_mask, x["kl_coef"])
    one_past = token_rewards(scores, logprobs, ref, response_mask, x["kl_coef"], score_position="one_past")
    assert_same(on_last.rewards, want["score_on_last_token"]["rewards"])
    assert_same(one_past.rewards, want["score_one_past_last_token"]["rewards"])
    assert_same(on_last.kl, want["kl"])
    assert_same(on_last.kl.sum(1), want["sequence_kl"])
    assert_same(on_last.kl.sum(1).mean(), want["mean_sequence_kl"])
    assert_same(-x["kl_coef"] * on_last.kl.sum(1).mean(), want["mean_non_score_reward"])
    assert_same(on_last.rewards.sum(1).mean(), want["mean_rlhf_reward"])


@vector("rollout_eos_trick_pipeline")
def test_rollout_with_the_score_one_past_the_end(x: Any, want: Any) -> None:
    responses, width = torch.tensor(x["responses"]), len(x["responses"][0])
    tokens, lengths, found = truncate_after_token(responses, [x["eos_id"]], x["pad_id"])
    assert tokens.tolist() == want["postprocessed"]
    assert found.tolist() == want["contains_eos"]
    assert (lengths - 1).tolist() == want["sequence_lengths_index_of_last_real_token"]
    response_mask, one_longer = mask_from_lengths(lengths, width), mask_from_lengths(lengths + 1, width)
    assert (~response_mask).int().tolist() == want["padding_mask"]
    assert (~one_longer).int().tolist() == want["padding_mask_p1"]
    scores = replace_score_without_eos(real(x["rm_scores"]), found, x["no_eos_penalty"])
    assert_same(scores, want["scores"])
    rewards, kl = token_rewards(
        scores, real(x["logprobs"]), real(x["ref_logprobs"]), response_mask, x["kl_coef"], score_position="one_past"
    )
    assert_same(kl, want["kl"])
    assert_same(kl.sum(1).mean(), want["mean_sequence_kl"])
    assert_same(rewards, want["rewards"])
    advantages, returns = estimate_advantages(rewards, real(x["values"]), one_longer, x["gamma"], x["lam"])
    assert_same(advantages, want["advantages_raw"])
    assert_same(returns, want["returns"])
    assert_same(whiten(advantages, response_mask), want["advantages_whitened"])


@vector("truncate_after_token")
def test_truncation_starts_to_look_at_the_first_index(x: Any, want: Any) -> None:
    cut = truncate_after_token(torch.tensor(x["responses"]), [x["truncate_token"]], x["pad_id"], x["truncate_after"])
    assert cut.responses.tolist() == want["postprocessed"]
    assert cut.found.tolist() == want["valid"]
    assert_same(replace_score_without_eos(real(x["rm_scores"]), cut.found, x["penalty"]), want["scores"])


@vector("position_ids")
def test_positions_count_the_real_tokens_before(x: Any, want: Any) -> None:
    assert position_ids(torch.tensor(x["attention_mask"])).tolist() == want["position_ids"]
    assert position_ids(mask(x["attention_mask"])).tolist() == want["position_ids"]


@vector("logprobs_temperature")
def test_logprobs_and_entropy_at_the_sampling_temperature(x: Any, want: Any) -> None:
    for name, temperature in [("temperature1", 1.0), ("temperature0.7", 0.7)]:
        assert_same(token_logprobs(real(x["logits"]), torch.tensor(x["labels"]), temperature), want[name]["logprobs"])
        assert_same(entropy(real(x["logits"]), temperature), want[name]["entropy"])


@vector("ppo_policy_loss")
def test_policy_loss(x: Any, want: Any) -> None:
    new, old, advantages = real(x["new_logprobs"]), real(x["old_logprobs"]), real(x["advantages"])
    kept = mask(x["mask"])
    got = clipped_policy_loss(new, old, advantages, kept, x["cliprange"])
    assert_same(got.loss, want["token_mean"])
    assert_same(got.clip_fraction, want["clipfrac"])
    assert_same(got.approx_kl, want["approxkl_half_mean_sq"])
    assert_same(got.approx_kl_k3, want["approxkl_k3_old_to_new"])
    assert_same(got.mean_ratio, want["mean_ratio"])
    per_token, _ = policy_token_losses(new, old, advantages, kept, x["cliprange"])
    assert_same(per_token, want["per_token_loss"])
    assert_same(masked_mean(per_token, kept, dim=1).mean(), want["mean_of_sequence_means"])


@vector("ppo_value_loss")
def test_value_loss(x: Any, want: Any) -> None:
    tensors = real(x["vpred"]), real(x["old_values"]), real(x["returns"]), mask(x["mask"])
    got = clipped_value_loss(*tensors, x["cliprange_value"])
    assert_same(got.loss, want["clipped_loss"])
    assert_same(got.clip_fraction, want["clipfrac"])
    assert_same(value_token_losses(*tensors, x["cliprange_value"])[0], want["per_token_max"])
    assert_same(clipped_value_loss(*tensors, None).loss, want["unclipped_loss"])
    assert_same(clipped_value_loss(*tensors, None).clip_fraction, 0.0)


@vector("ppo_total_loss_with_ptx")
def test_total_loss(x: Any, want: Any) -> None:
    pretraining = next_token_loss(real(x["ptx_token_logprobs"]), mask(x["ptx_mask"]))
    assert_same(pretraining, want["ptx_cross_entropy"])
    policy, value = real(x["policy_loss"]), real(x["value_loss"])
    assert_same(ppo_loss(policy, value, x["vf_coef"]), want["total_without_ptx"])
    assert_same(ppo_loss(policy, value, x["vf_coef"], pretraining, x["ptx_coef"]), want["total_with_ptx"])


@vector("adaptive_kl_controller")
def test_adaptive_kl_coefficient(x: Any, want: Any) -> None:
    for name, n_episodes in [("n_steps_512", 512), ("n_steps_64", 64)]:
        coef, got = x["init"], []
        for observed in x["observed_kl"]:
            coef = adaptive_kl_coef(coef, observed, x["target"], x["horizon"], n_episodes)
            got.append(coef)
        assert_same(got, want[name])


@vector("rm_kwise_no_ties")
def test_ranking_loss_of_one_prompt(x: Any, want: Any) -> None:
    check_kwise_loss(x, want)


@vector("rm_kwise_with_ties")
def test_ranking_loss_drops_ties(x: Any, want: Any) -> None:
    check_kwise_loss(x, want)


def check_kwise_loss(x: Any, want: Any) -> None:
    assert sorted(ranked_pairs(x["rank"])) == sorted((w, lo) for w, lo, _ in want["pairs_winner_loser_loss"])
    for denominator, name in [("kept", "mean_over_kept_pairs"), ("k_choose_2", "divided_by_K_choose_2")]:
        rewards = real(x["rewards"]).requires_grad_()
        pairs = pair_index([x["rank"]], denominator)
        loss = kwise_ranking_loss(rewards, pairs)
        loss.backward()
        assert_same(loss.detach(), want[f"loss_{name}"])
        assert_same(rewards.grad, want[f"grad_{name}"])
        assert_same(pair_accuracy(rewards.detach(), pairs), want["pair_accuracy"])


@vector("rm_batch_of_unequal_K")
def test_every_prompt_weighs_the_same_whatever_its_number_of_responses(x: Any, want: Any) -> None:
    ranks = [p["rank"] for p in x["prompts"]]
    rewards = [real(p["rewards"]) for p in x["prompts"]]
    assert_same(kwise_ranking_loss(torch.cat(rewards), pair_index(ranks)), want["mean_of_prompt_means"])
    alone = [kwise_ranking_loss(r, pair_index([rank])) for r, rank in zip(rewards, ranks, strict=True)]
    assert_same(torch.stack(alone), want["per_prompt"])


@vector("rm_best_of_4_cross_entropy")
def test_best_of_four_cross_entropy(x: Any, want: Any) -> None:
    for best, loss in [(x["best"], want["loss"]), (1, want["loss_if_best_is_1"])]:
        assert_same(best_of_n_cross_entropy(real([x["rewards"]]), torch.tensor([best])), loss)


@vector("rm_pairwise")
def test_pairwise_loss_with_its_options(x: Any, want: Any) -> None:
    chosen, rejected = real(x["chosen"]), real(x["rejected"])
    assert_same(pairwise_loss(chosen, rejected), want["loss"])
    assert_same(pairwise_loss(chosen, rejected, margin=real(x["margin"])), want["loss_with_margin"])
    assert_same(pairwise_loss(chosen, rejected, center_coef=x["center_coef"]), want["loss"] + want["center_term"])
    assert_same(pairwise_loss(chosen, rejected, p_chosen=real(x["p_chosen"])), want["loss_soft_labels"])
    pairs = pair_index([[1, 2]] * 3)
    assert_same(pair_accuracy(torch.stack([chosen, rejected], 1).flatten(), pairs), want["accuracy"])


@vector("rm_normalisation")
def test_reward_normalisation(x: Any, want: Any) -> None:
    both = from_reference_samples(x["reference_rewards"], x["target_mean"], x["target_std"])
    assert_same([both.gain, both.bias], [want["gain"], want["bias"]])
    assert_same(both(real(x["probe"])), want["probe_gain_bias"])
    bias_only = from_demonstrations(x["reference_rewards"])
    assert_same([bias_only.gain, bias_only.bias], [1.0, want["bias_only"]])
    assert_same(bias_only(real(x["probe"])), want["probe_bias_only"])


@vector("kl_estimators")
def test_kl_estimators_and_their_expectations(x: Any, want: Any) -> None:
    p, q = real(x["p"]), real(x["q"])
    for kind in ("k1", "k2", "k3"):
        got = kl_estimate(p.log(), q.log(), kind)
        assert_same(got, want[kind])
        assert_same((p * got).sum(), want[f"E_{kind}"])


@vector("kl_estimators_tokens")
def test_kl_estimators_of_tokens(x: Any, want: Any) -> None:
    for kind in ("k1", "k2", "k3"):
        assert_same(kl_estimate(real(x["logprobs"]), real(x["ref_logprobs"]), kind), want[kind])
    assert_same(kl_estimate(real(x["logprobs"]), real(x["ref_logprobs"]), "k3").sum(), want["sum_k3"])


@vector("bon_kl")
def test_kl_of_best_of_n(x: Any, want: Any) -> None:
    assert_same([best_of_n_kl(n) for n in x["n"]], want["kl"])


@vector("bon_unbiased_estimator")
def test_best_of_n_means(x: Any, want: Any) -> None:
    got = best_of_n_means(x["proxy"], x["gold"])
    assert_same(got.n, want["n"])
    assert_same(got.proxy, want["proxy_best_of_n"])
    assert_same(got.gold, want["gold_best_of_n"])


@vector("overoptimisation_forms")
def test_overoptimisation_forms_and_optima(x: Any, want: Any) -> None:
    assert_same(best_of_n_form(x["d"], x["alpha_bon"], x["beta_bon"]), want["R_bon"])
    assert_same(rl_form(x["d"], x["alpha_rl"], x["beta_rl"]), want["R_rl"])
    assert_same(best_of_n_optimum(x["alpha_bon"], x["beta_bon"]), [want["bon_dstar"], want["bon_Rstar"]])
    assert_same(rl_optimum(x["alpha_rl"], x["beta_rl"]), [want["rl_dstar"], want["rl_Rstar"]])


@vector("sft_loss")
def test_sft_loss(x: Any, want: Any) -> None:
    logprobs, kept = real(x["token_logprobs"]), mask(x["completion_mask"])
    assert_same(next_token_loss(logprobs, kept), want["token_mean"])
    assert_same(masked_mean(-logprobs, kept, dim=1).mean(), want["mean_of_sequence_means"])
    parts = [next_token_loss(logprobs[i : i + 1], kept[i : i + 1], n_tokens=1) for i in range(2)]
    assert_same(torch.stack(parts), want["sequence_sums"])


@vector("ema")
def test_moving_average(x: Any, want: Any) -> None:
    average, got = real([x["init"]]), []
    for weight in x["weights"]:
        update_ema([average], [real([weight])], x["decay"])
        got.append(average.item())
    assert_same(got, want["ema"])


@vector("lr_schedules")
def test_learning_rate_schedules(x: Any, want: Any) -> None:
    assert_same([cosine_to_fraction(step, x["cosine_total"]) for step in range(9)], want["cosine_to_10pct"])
    assert_same([warmup_from_fraction(step, x["warmup_iters"]) for step in range(12)], want["warmup_from_10pct"])
    assert_same([linear_to_zero(step, x["linear_total"]) for step in range(4)], want["linear_to_zero"])


@vector("adam_epsilon_placement")
def test_our_optimizer_is_the_adam_with_epsilon_outside_the_bias_correction(x: Any, want: Any) -> None:
    weight = real([x["start"]]).requires_grad_()
    adam = torch.optim.AdamW([weight], lr=x["lr"], betas=tuple(x["betas"]), eps=x["eps"], weight_decay=0.0)
    got = []
    for grad in x["grads"]:
        weight.grad = real([grad])
        adam.step()
        got.append(weight.item())
    assert_same(got, want["pytorch"])
    assert abs(got[0] - want["tensorflow"][0]) > 0.02


@vector("win_rate_ci")
def test_win_rate_with_its_intervals(x: Any, want: Any) -> None:
    got = win_rate(x["wins"], x["ties"], x["losses"], x["z"])
    assert_same([got.rate, got.standard_error], [want["win_rate"], want["standard_error"]])
    assert_same(got.normal, want["normal_95"])
    assert_same(got.wilson, want["wilson_95"])
