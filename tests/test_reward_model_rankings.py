"""Mismatched answers: the best answer of another prompt as one more worse answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_reward_model_second import CPU, WAYS, comparisons, records, train

from policy.encoding import encode_answers
from policy.language_model import load_tokenizer
from reward.ranking_loss import ranked_pairs
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from stages.errors import ConfigError
from stages.job import keep_back
from stages.reward_model.rankings import with_mismatched
from stages.reward_model.trainer import Ranking


def ranking(i: int, **changes: Any) -> Ranking:
    return Ranking([i, i], [[10 + i, 0], [20 + i, 0], [30 + i, 0]], (2, 1, 3))._replace(**changes)


def test_each_prompt_gets_the_best_answer_of_another_one_below_its_own_best() -> None:
    train = [ranking(i) for i in range(6)]
    changed = with_mismatched(train, 9, seed=3)
    for before, after in zip(train, changed, strict=True):
        assert after.prompt == before.prompt and after.responses[:3] == before.responses
        assert after.ranks == (2, 1, 3, 3)
        assert after.responses[3][0] - 20 in set(range(6)) - {before.prompt[0]}
        assert set(ranked_pairs(after.ranks)) - set(ranked_pairs(before.ranks)) == {(0, 3), (1, 3)}
    taken = [after.responses[3][0] for after in changed]
    assert len(set(taken)) == 6  # no answer is given to two prompts
    assert changed == with_mismatched(train, 9, seed=3) != with_mismatched(train, 9, seed=4)


def test_an_answer_to_the_same_prompt_is_not_taken() -> None:
    train = [ranking(0), ranking(0), ranking(0), ranking(1)]
    for seed in range(8):
        changed = with_mismatched(train, 9, seed)
        assert [each.responses[3] for each in changed[:3]] == [[21, 0]] * 3
        assert changed[3].responses[3] == [20, 0]


def test_merged_labelers_vote_for_it_as_for_their_worst() -> None:
    votes = ((1, 2, 3), (1, 1, 2))
    (changed, _) = with_mismatched([ranking(0, votes=votes), ranking(1, votes=votes)], 9, seed=0)
    assert changed.votes == ((1, 2, 3, 3), (1, 1, 2, 2))


def test_a_text_stays_within_the_limit() -> None:
    long = ranking(1, responses=[[11] * 4, [21] * 4, [31] * 4])
    for seed in range(8):
        changed = with_mismatched([ranking(0), long, ranking(2)], 4, seed)  # 2 tokens of prompt and 2 of answer
        assert [each.responses[3] for each in (changed[0], changed[2])] == [[22, 0], [20, 0]]
        assert changed[1].responses[3] in ([20, 0], [22, 0])
    only_long = with_mismatched([ranking(0), long], 4, seed=0)
    assert only_long[0] == ranking(0) and only_long[1].responses[3] == [20, 0]


@pytest.mark.parametrize("others", [[], [ranking(0)], [ranking(1)]])
def test_where_no_answer_of_another_prompt_fits_the_setting_is_refused(others: list[Ranking]) -> None:
    with pytest.raises(ConfigError, match="mismatched_answers needs another prompt's answer that fits, but no prompt"):
        with_mismatched([ranking(0), *others], 3, seed=0)


@pytest.mark.parametrize("way", ["full", "frozen"])
def test_the_stage_trains_on_them_and_sets_the_scale_without_them(small_base: Path, tmp_path: Path, way: str) -> None:
    rows = comparisons()
    trained_on, _ = keep_back(records(rows), 0.3, 0)
    scores = []
    for mismatched in (False, True):
        settings = {"mismatched_answers": mismatched, "second_half": False, "normalise_on": "policy_samples"}
        output, _, _ = train(small_base, tmp_path / str(mismatched), rows, **settings, **WAYS[way])
        model, tokenizer = load_scalar_model(output, CPU), load_tokenizer(output)
        encoded = [encode_answers(tokenizer, row.prompt, row.responses) for row in trained_on]
        prompts, answers = zip(*((prompt, answer) for prompt, given in encoded for answer in given), strict=True)
        scores.append(score_responses(model, prompts, answers, tokenizer.pad_token_id))
        assert (scores[-1].mean().item(), scores[-1].std().item()) == pytest.approx((0, 1), abs=0.02)
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)
