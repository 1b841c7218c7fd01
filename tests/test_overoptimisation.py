from itertools import combinations

import numpy as np
import pytest

from reward.overoptimisation import (
    best_of_n_form,
    best_of_n_kl,
    best_of_n_means,
    best_of_n_optimum,
    rl_form,
    rl_optimum,
)


def test_best_of_n_means_equal_the_average_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 7))
    got = best_of_n_means(proxy, gold)
    for n in range(1, 8):
        best = [max(subset, key=lambda i: proxy[i]) for subset in combinations(range(7), n)]
        assert got.proxy[n - 1] == pytest.approx(proxy[best].mean())
        assert got.gold[n - 1] == pytest.approx(gold[best].mean())


def test_samples_with_one_proxy_score_share_their_gold_score_in_any_order() -> None:
    for gold in ([0.0, 1.0, 5.0], [1.0, 0.0, 5.0]):
        got = best_of_n_means([2.0, 2.0, -1.0], gold)
        assert got.gold.tolist() == pytest.approx([2.0, (0.5 + 0.5 + 0.5) / 3, 0.5])


def test_many_samples_do_not_overflow() -> None:
    got = best_of_n_means(np.arange(2000), np.ones(2000))
    np.testing.assert_allclose(got.gold, 1.0)  # the weights of each n sum to 1
    n = got.n.astype(float)
    np.testing.assert_allclose(got.proxy, n * 2001 / (n + 1) - 1)  # mean of the maximum of n ranks out of 2000


def test_scores_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"proxy \(2,\) and gold \(3,\)"):
        best_of_n_means([1, 2], [1, 2, 3])


def test_one_sample_is_the_policy_itself_and_none_is_refused() -> None:
    assert best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        best_of_n_kl(0)


@pytest.mark.parametrize("form, optimum", [(best_of_n_form, best_of_n_optimum), (rl_form, rl_optimum)])
def test_the_optimum_lies_on_the_curve_and_above_its_neighbours(form, optimum) -> None:
    best = optimum(0.5, 0.15)
    around = form(np.array([0.0, 0.99, 1.0, 1.01]) * best.distance, 0.5, 0.15)
    assert around[0] == 0
    assert around[2] == pytest.approx(best.reward)
    assert around[2] > max(around[1], around[3])
