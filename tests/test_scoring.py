from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from policy.sampling.rollout import Rollout, as_rollout
from reward.normalisation import RewardNormalisation
from reward.scalar_model import from_language_model, response_scores, store_normalisation
from reward.scoring import score_responses

CPU = torch.device("cpu")
RNG = random.Random(0)
PROMPTS = [[RNG.randrange(5, 190) for _ in range(RNG.randint(1, 9))] for _ in range(12)]
RESPONSES = [[RNG.randrange(5, 190) for _ in range(RNG.randint(0, 7))] + [1] for _ in range(12)]


@pytest.fixture(scope="module")
def scorer(tiny_base: Path) -> Any:
    return from_language_model(tiny_base, CPU, 0).eval()


@pytest.fixture(scope="module")
def alone(scorer: Any) -> torch.Tensor:
    """(12,) each text's score from the body's states of it alone: no padding, no neighbour."""
    with torch.no_grad():
        states = [
            scorer.model(torch.tensor([p + r])).last_hidden_state[0, -1]
            for p, r in zip(PROMPTS, RESPONSES, strict=True)
        ]
        return scorer.score(torch.stack(states)).squeeze(1)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
@pytest.mark.parametrize("pad_id", [0, 1, 17])
def test_a_score_does_not_depend_on_batch_size_neighbours_or_padding(
    scorer: Any, alone: torch.Tensor, batch_size: int, pad_id: int
) -> None:
    got = score_responses(scorer, PROMPTS, RESPONSES, pad_id, batch_size=batch_size)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_scores_come_in_the_order_given(scorer: Any, alone: torch.Tensor) -> None:
    order = list(range(12))
    random.Random(1).shuffle(order)
    got = score_responses(scorer, [PROMPTS[i] for i in order], [RESPONSES[i] for i in order], 0, batch_size=5)
    torch.testing.assert_close(got, alone[order], atol=1e-5, rtol=1e-5)


def test_a_score_does_not_depend_on_the_side_of_the_padding(scorer: Any, alone: torch.Tensor) -> None:
    """The prompts padded on the right: then padding stands in the middle of every text."""
    rollout = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    lengths = rollout.prompt_mask.sum(1)
    rolled = [
        torch.stack([row.roll(int(n)) for row, n in zip(part, lengths, strict=True)])
        for part in (rollout.prompts, rollout.prompt_mask)
    ]
    assert rolled[1][:, 0].all()
    with torch.no_grad():
        got = response_scores(scorer, Rollout(*rolled, *rollout[2:]))
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_the_normalisation_is_gain_times_score_plus_bias(scorer: Any, alone: torch.Tensor) -> None:
    store_normalisation(scorer, RewardNormalisation(3.0, -1.0))
    try:
        for normalised, expected in ((True, 3 * alone - 1), (False, alone)):
            got = score_responses(scorer, PROMPTS, RESPONSES, 0, normalised=normalised)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    finally:
        store_normalisation(scorer, RewardNormalisation())


def test_texts_as_a_rollout_keep_their_ids_between_the_paddings() -> None:
    rollout = as_rollout([[5, 6], [7]], [[8], [9, 1]], 0, CPU)
    assert rollout.prompts.tolist() == [[5, 6], [0, 7]]
    assert rollout.prompt_mask.tolist() == [[True, True], [False, True]]
    assert rollout.responses.tolist() == [[8, 0], [9, 1]]
    assert rollout.response_mask.tolist() == [[True, False], [True, True]]
    assert rollout.ended.tolist() == [True, True]
