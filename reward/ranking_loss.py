"""Ranking losses for a reward model.

InstructGPT eq. 1: all pairs of one prompt's K responses are one batch element, each prompt has the same weight whatever
its K, tied pairs are dropped. K forward passes score K responses; pairs only index these K scores.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid


class PairIndex(NamedTuple):
    """Every kept pair of a batch, as positions in the flat list of its responses. Built by the collator."""

    winner: Tensor  # (pairs,) int64
    loser: Tensor  # (pairs,) int64
    weight: Tensor  # (pairs,) float64; sums to 1 when the batch is the whole step and denominator is "kept"
    margin: Tensor | None = None  # (pairs,) float64: by how much the winner is better; None: no margins
    p_winner: Tensor | None = None  # (pairs,) float64: probability that the winner is the better one; None: 1

    def to(self, device: torch.device | str) -> "PairIndex":
        moved = {name: part.to(device) for name, part in self._asdict().items() if part is not None}
        return PairIndex(**moved)


def ranked_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Ranks of one prompt's responses (1 = best, equal = tie) -> (winner, loser) positions, ties left out."""
    pairs = [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]]
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs]


def pair_index(
    ranks: Sequence[Sequence[int]],
    denominator: Literal["kept", "k_choose_2"] = "kept",
    n_prompts: int | None = None,
    margins: Sequence[float | None] | None = None,
) -> PairIndex:
    """One sequence of ranks per prompt -> pairs of positions in the concatenated responses of all prompts.

    `margins`, one per prompt, apply to all its pairs; None among them counts as 0.

    A pair has weight 1 / (n_prompts * pairs of its prompt). The paper says that ties are dropped but not from which
    count: "kept" divides by the pairs that are left, "k_choose_2" by all of them. `n_prompts` counts the prompts that
    have a kept pair: those of this batch, unless the count of the whole optimiser step is given because the batch is a
    micro-batch of it."""
    pairs_of_prompts = [ranked_pairs(prompt_ranks) for prompt_ranks in ranks]
    n_prompts = sum(map(bool, pairs_of_prompts)) if n_prompts is None else n_prompts
    winner: list[int] = []
    loser: list[int] = []
    weight: list[float] = []
    first = 0
    for prompt_ranks, pairs in zip(ranks, pairs_of_prompts, strict=True):
        k = len(prompt_ranks)
        n_pairs = len(pairs) if denominator == "kept" else k * (k - 1) // 2
        winner += [first + w for w, _ in pairs]
        loser += [first + lo for _, lo in pairs]
        weight += [1.0 / (n_prompts * n_pairs) for _ in pairs]
        first += k
    stated = None
    if margins is not None:
        stated = [m or 0.0 for m, pairs in zip(margins, pairs_of_prompts, strict=True) for _ in pairs]
    return PairIndex(
        torch.tensor(winner, dtype=torch.int64),
        torch.tensor(loser, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float64),
        None if stated is None else torch.tensor(stated, dtype=torch.float64),
    )


def voted_pair_index(votes: Sequence[Sequence[Sequence[int]]], n_prompts: int | None = None) -> PairIndex:
    """As `pair_index`, for prompts whose responses several labelers ranked: votes[prompt][labeler] are ranks.

    A pair's winner has the majority of votes and p_winner is its share of them (WebGPT, section 3.2: soft labels). A
    labeler who ties two responses has no vote on this pair; a pair without a vote is left out."""
    winner: list[int] = []
    loser: list[int] = []
    share: list[float] = []
    counts: list[int] = []
    first = 0
    for ranks in votes:
        before = len(winner)
        for i, j in combinations(range(len(ranks[0])), 2):
            for_i = sum(given[i] < given[j] for given in ranks)
            for_j = sum(given[j] < given[i] for given in ranks)
            if for_i + for_j:
                winner.append(first + (i if for_i >= for_j else j))
                loser.append(first + (j if for_i >= for_j else i))
                share.append(max(for_i, for_j) / (for_i + for_j))
        counts.append(len(winner) - before)
        first += len(ranks[0])
    n_prompts = sum(map(bool, counts)) if n_prompts is None else n_prompts
    return PairIndex(
        torch.tensor(winner, dtype=torch.int64),
        torch.tensor(loser, dtype=torch.int64),
        torch.tensor([1.0 / (n_prompts * n) for n in counts for _ in range(n)], dtype=torch.float64),
        p_winner=torch.tensor(share, dtype=torch.float64),
    )


def smoothed(pairs: PairIndex, label_noise: float) -> PairIndex:
    """Label smoothing: as if each vote were swapped with this probability, p becomes p (1 - noise) + (1 - p) noise."""
    sure = torch.ones_like(pairs.weight) if pairs.p_winner is None else pairs.p_winner
    return pairs._replace(p_winner=sure * (1 - label_noise) + (1 - sure) * label_noise)


def kwise_ranking_loss(rewards: Tensor, pairs: PairIndex) -> Tensor:
    """Mean over prompts of the mean over their pairs of -log sigmoid(r_winner - r_loser) (InstructGPT eq. 1).

    rewards (responses,), in the order that was given to `pair_index`. A batch with only ties gives 0, with gradient 0.
    A margin is subtracted from the difference (Llama 2, 3.2.2); with p_winner the loss is the cross-entropy against
    that probability. Raises ValueError if both are given, as `pairwise_loss` does."""
    difference = rewards[pairs.winner] - rewards[pairs.loser]
    losses = pair_losses(difference, pairs.margin, pairs.p_winner)
    return (pairs.weight.to(rewards) * losses).sum()


def pair_losses(difference: Tensor, margin: Tensor | None, p_winner: Tensor | None) -> Tensor:
    """(pairs,) loss of each difference r_winner - r_loser."""
    if margin is not None and p_winner is not None:
        raise ValueError("margin and p_chosen are both given; give only one of them.")
    if p_winner is not None:
        p = p_winner.to(difference)
        return -p * logsigmoid(difference) - (1 - p) * logsigmoid(-difference)
    return -logsigmoid(difference if margin is None else difference - margin.to(difference))


def pair_accuracy(rewards: Tensor, pairs: PairIndex) -> Tensor:
    """Share of kept pairs whose winner scores strictly higher; every pair counts once. NaN if there is no pair."""
    return (rewards[pairs.winner] > rewards[pairs.loser]).to(rewards.dtype).mean()


def pairwise_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
    p_chosen: Tensor | None = None,
) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected - margin), plus center_coef * mean((chosen + rejected)^2). All (pairs,).

    With `p_chosen`, the share of labelers who prefer the chosen answer (0.5 = tie), the loss is the cross-entropy
    against it (WebGPT). A margin says by how much the chosen answer is better. Raises ValueError if both are given."""
    losses = pair_losses(chosen - rejected, margin, p_chosen)
    return losses.mean() + center_coef * ((chosen + rejected) ** 2).mean()


def best_of_n_cross_entropy(rewards: Tensor, best: Tensor) -> Tensor:
    """Softmax cross-entropy of the labeler's choice: rewards (prompts, n), best (prompts,) (lm-human-preferences)."""
    return cross_entropy(rewards, best)
