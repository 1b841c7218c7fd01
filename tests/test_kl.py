import pytest
import torch

from policy.maths.kl import KlKind, adaptive_kl_coef, kl_estimate, replace_score_without_eos, token_rewards
from policy.maths.masks import mask_from_lengths

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -0.7, -4.0]])
REF = torch.tensor([[-1.5, -1.0, -0.5], [-0.1, -0.9, -9.0]])
MASK = mask_from_lengths(torch.tensor([3, 2]), 3)
SCORES = torch.tensor([2.0, -1.0])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_policy_equal_to_its_reference_pays_nothing(kind: KlKind) -> None:
    assert (kl_estimate(LOGPROBS, LOGPROBS, kind) == 0).all()
    rewards = token_rewards(SCORES, LOGPROBS, LOGPROBS, MASK, 0.1, kind).rewards
    assert rewards.tolist() == [[0, 0, 2], [0, -1, 0]]


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_k2_and_k3_are_never_negative(kind: KlKind) -> None:
    assert (kl_estimate(LOGPROBS, REF, kind) >= 0).all()


def test_rewards_of_a_response_sum_to_score_minus_penalty() -> None:
    rewards, kl = token_rewards(SCORES, LOGPROBS, REF, MASK, 0.1)
    torch.testing.assert_close(rewards.sum(1), SCORES - 0.1 * kl.sum(1))
    torch.testing.assert_close(kl.sum(1), torch.tensor([-0.5, 0.0]))


@pytest.mark.parametrize("position, columns", [("last_token", [2, 1]), ("one_past", [2, 2])])
def test_without_penalty_the_score_is_the_only_reward(position: str, columns: list[int]) -> None:
    rewards = token_rewards(SCORES, LOGPROBS, REF, MASK, 0.0, score_position=position).rewards
    wanted = torch.zeros(2, 3)
    wanted[[0, 1], columns] = SCORES
    assert torch.equal(rewards, wanted)


def test_garbage_after_the_end_costs_nothing() -> None:
    dirty = token_rewards(SCORES, LOGPROBS.where(MASK, torch.nan), REF.where(MASK, -torch.inf), MASK, 0.1)
    clean = token_rewards(SCORES, LOGPROBS, REF, MASK, 0.1)
    assert torch.equal(dirty.rewards, clean.rewards) and torch.equal(dirty.kl, clean.kl)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="no KL estimator 'k4'; choose k1, k2 or k3"):
        kl_estimate(LOGPROBS, REF, "k4")


def test_an_unfinished_response_gets_the_penalty_whatever_it_scored() -> None:
    found = torch.tensor([True, False])
    assert replace_score_without_eos(torch.tensor([5.0, 5.0]), found, -1.0).tolist() == [5.0, -1.0]
    assert replace_score_without_eos(torch.tensor([5.0, -9.0]), found, -1.0).tolist() == [5.0, -1.0]


def test_the_coefficient_rises_above_target_and_falls_below_it_by_a_bounded_amount() -> None:
    def after(observed: float) -> float:
        return adaptive_kl_coef(1.0, observed, target=6.0, horizon=100, n_episodes=10)

    assert after(6.0) == 1.0
    assert after(6.6) == pytest.approx(1.01)
    assert after(1e9) == pytest.approx(1.02)
    assert after(-5.0) == pytest.approx(0.98)


@pytest.mark.parametrize("n_episodes", [1, 64, 512, 10**6])
def test_the_adaptive_coefficient_stays_positive_however_many_episodes_a_step_has(n_episodes: int) -> None:
    coef = 0.1
    for _ in range(5):
        lower = adaptive_kl_coef(coef, 0.0, target=6.0, horizon=10, n_episodes=n_episodes)
        assert 0.1 * coef <= lower * (1 + 1e-12) and lower < coef
        coef = lower
