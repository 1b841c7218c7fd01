import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reward.ranking_loss import (
    kwise_ranking_loss,
    pair_accuracy,
    pair_index,
    pairwise_loss,
    ranked_pairs,
    smoothed,
    voted_pair_index,
)

RANKS = [[2, 1, 4, 3], [1, 2], [1, 1, 2], [3, 1, 2, 2, 1]]
SIZES = [len(ranks) for ranks in RANKS]


def rewards() -> Tensor:
    return torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def loss_and_gradient(r: Tensor, ranks: list[list[int]]) -> tuple[Tensor, Tensor]:
    loss = kwise_ranking_loss(r, pair_index(ranks))
    return loss.detach(), torch.autograd.grad(loss, r)[0]


def test_the_gradient_equals_that_of_the_pairs_written_out_one_by_one() -> None:
    r = rewards()
    of_prompts = []
    for part, ranks in zip(r.split(SIZES), RANKS, strict=True):
        k = range(len(ranks))
        losses = [-logsigmoid(part[i] - part[j]) for i in k for j in k if ranks[i] < ranks[j]]
        of_prompts.append(torch.stack(losses).mean())
    wanted = torch.stack(of_prompts).mean()
    loss, gradient = loss_and_gradient(r, RANKS)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, r)[0], rtol=0, atol=1e-12)


def test_adding_a_constant_to_all_rewards_of_a_prompt_changes_nothing() -> None:
    shift = torch.tensor([5.0, -3.0, 0.5, 9.0], dtype=torch.float64).repeat_interleave(torch.tensor(SIZES))
    shifted = (rewards() + shift).detach().requires_grad_()
    torch.testing.assert_close(loss_and_gradient(shifted, RANKS), loss_and_gradient(rewards(), RANKS))
    assert loss_and_gradient(rewards(), RANKS)[1].sum().abs() < 1e-12


def test_permuting_responses_permutes_gradients() -> None:
    order = torch.tensor([2, 0, 3, 1])
    r = rewards()[:4].detach().requires_grad_()
    moved = r[order].detach().requires_grad_()
    loss, gradient = loss_and_gradient(r, [RANKS[0]])
    moved_loss, moved_gradient = loss_and_gradient(moved, [[RANKS[0][i] for i in order.tolist()]])
    torch.testing.assert_close(moved_loss, loss)
    torch.testing.assert_close(moved_gradient, gradient[order])


def test_micro_batches_add_up_when_they_know_the_number_of_prompts() -> None:
    r = rewards()
    parts = [
        kwise_ranking_loss(part, pair_index([ranks], n_prompts=4))
        for part, ranks in zip(r.split(SIZES), RANKS, strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), kwise_ranking_loss(r, pair_index(RANKS)))


def test_every_pair_has_a_better_winner_and_ties_are_left_out() -> None:
    assert sorted(ranked_pairs([2, 1, 2])) == [(1, 0), (1, 2)]
    assert len(ranked_pairs([1, 2, 3, 4])) == 6
    assert ranked_pairs([1, 1, 1]) == []


def test_weights_sum_to_one_and_a_prompt_of_ties_counts_for_nothing() -> None:
    assert pair_index(RANKS).weight.sum().item() == pytest.approx(1)
    with_ties = pair_index([[1, 1], *RANKS])
    assert with_ties.weight.tolist() == pair_index(RANKS).weight.tolist()
    assert (with_ties.winner - 2).tolist() == pair_index(RANKS).winner.tolist()


def test_a_batch_of_ties_only_gives_loss_and_gradient_zero_and_no_accuracy() -> None:
    r = torch.ones(2, requires_grad=True)
    loss, gradient = loss_and_gradient(r, [[1, 1]])
    assert loss == 0 and gradient.tolist() == [0, 0]
    assert pair_accuracy(r, pair_index([[1, 1]])).isnan()


def test_accuracy_counts_pairs_and_an_equal_score_is_wrong() -> None:
    assert pair_accuracy(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0]), pair_index([[1, 2, 3], [1, 2]])) == 0.75


@pytest.mark.parametrize("difference", [-1000.0, 1000.0])
def test_extreme_rewards_give_a_finite_loss(difference: float) -> None:
    r = torch.tensor([difference, 0.0], requires_grad=True)
    loss, gradient = loss_and_gradient(r, [[1, 2]])
    assert loss == max(0.0, -difference) and gradient.isfinite().all()


def test_two_responses_are_the_pairwise_loss() -> None:
    chosen, rejected = torch.tensor([0.3, 2.0]), torch.tensor([1.0, -1.0])
    flat = torch.stack([chosen, rejected], 1).flatten()
    torch.testing.assert_close(pairwise_loss(chosen, rejected), kwise_ranking_loss(flat, pair_index([[1, 2], [1, 2]])))


def test_a_soft_label_is_lowest_where_the_reward_difference_says_the_same() -> None:
    chosen = torch.tensor([0.8 / 0.2]).log().requires_grad_()
    pairwise_loss(chosen, torch.zeros(1), p_chosen=torch.tensor([0.8])).backward()
    assert chosen.grad is not None and chosen.grad.abs().item() < 1e-6


def test_a_margin_and_a_soft_label_together_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="margin and p_chosen are both given"):
        pairwise_loss(one, one, margin=one, p_chosen=one)


MARGINS = [0.5, None, -1.0, 2.0]


def test_with_margins_the_gradient_is_that_of_the_pairs_whose_lead_is_cut_by_them() -> None:
    r = rewards()
    of_prompts = []
    for part, ranks, margin in zip(r.split(SIZES), RANKS, MARGINS, strict=True):
        k = range(len(ranks))
        losses = [-logsigmoid(part[i] - part[j] - (margin or 0)) for i in k for j in k if ranks[i] < ranks[j]]
        of_prompts.append(torch.stack(losses).mean())
    wanted = torch.autograd.grad(torch.stack(of_prompts).mean(), r)[0]
    found = torch.autograd.grad(kwise_ranking_loss(r, pair_index(RANKS, margins=MARGINS)), r)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# Three labelers on three answers, two on two; of the first, one ties answers 0 and 1.
VOTES = [[[1, 2, 3], [2, 1, 3], [1, 1, 2]], [[1, 2], [1, 2]]]


def test_votes_of_labelers_are_the_shares_that_the_cross_entropy_aims_at() -> None:
    r = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

    def cross_entropy(i: int, j: int, share: float) -> Tensor:
        p = 1 / (1 + (r[j] - r[i]).exp())
        return -share * p.log() - (1 - share) * (1 - p).log()

    first = (cross_entropy(0, 1, 1 / 2) + cross_entropy(0, 2, 1.0) + cross_entropy(1, 2, 1.0)) / 3
    wanted = (first + cross_entropy(3, 4, 1.0)) / 2
    pairs = voted_pair_index(VOTES)
    loss = kwise_ranking_loss(r, pairs)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, r)[0], torch.autograd.grad(wanted, r)[0])
    assert pairs.weight.sum().item() == pytest.approx(1)


def test_one_labeler_s_votes_are_the_plain_loss() -> None:
    votes = kwise_ranking_loss(rewards(), voted_pair_index([[ranks] for ranks in RANKS]))
    torch.testing.assert_close(votes, kwise_ranking_loss(rewards(), pair_index(RANKS)), rtol=1e-12, atol=0)


def test_the_majority_wins_and_a_pair_that_all_tie_is_left_out() -> None:
    pairs = voted_pair_index([[[2, 1, 1], [2, 1, 1], [1, 2, 2]]])
    assert list(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True)) == [(1, 0), (2, 0)]
    torch.testing.assert_close(pairs.p_winner, torch.full((2,), 2 / 3, dtype=torch.float64))


def test_label_noise_is_the_expected_loss_over_labels_that_may_be_turned_round() -> None:
    r, noise = rewards(), 0.1
    turned = [[max(ranks) + 1 - rank for rank in ranks] for ranks in RANKS]
    wanted = (1 - noise) * kwise_ranking_loss(r, pair_index(RANKS)) + noise * kwise_ranking_loss(r, pair_index(turned))
    found = kwise_ranking_loss(r, smoothed(pair_index(RANKS), noise))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, r)[0], torch.autograd.grad(wanted, r)[0])


def test_k_wise_margins_with_soft_labels_are_refused() -> None:
    pairs = smoothed(pair_index(RANKS, margins=MARGINS), 0.1)
    with pytest.raises(ValueError, match="margin and p_chosen are both given"):
        kwise_ranking_loss(rewards(), pairs)
    assert pairs.to("cpu")._fields == pairs._fields
