"""Mismatched answers: the best answer of another prompt as one more worse answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_recipe import job, small_recipe, write_recipe
from test_reward_model_second import comparisons, written

from pipeline.recipe import load_recipe
from policy.language_model import load_tokenizer
from reward.ranking_loss import ranked_pairs
from stages.errors import ConfigError
from stages.reward_model.rankings import load_rankings, with_mismatched
from stages.reward_model.trainer import Ranking


def ranking(i: int, **changes: Any) -> Ranking:
    return Ranking([i, i], [[10 + i, 0], [20 + i, 0], [30 + i, 0]], (2, 1, 3))._replace(**changes)


def test_each_prompt_gets_the_best_answer_of_another_one_below_its_own_best() -> None:
    train = [ranking(i) for i in range(6)]
    changed = with_mismatched(train, seed=3)
    for before, after in zip(train, changed, strict=True):
        assert after.prompt == before.prompt and after.responses[:3] == before.responses
        assert after.ranks == (2, 1, 3, 3)
        assert after.responses[3][0] - 20 in set(range(6)) - {before.prompt[0]}
        assert set(ranked_pairs(after.ranks)) - set(ranked_pairs(before.ranks)) == {(0, 3), (1, 3)}
    taken = [after.responses[3][0] for after in changed]
    assert len(set(taken)) == 6  # no answer is given to two prompts
    assert changed == with_mismatched(train, seed=3) != with_mismatched(train, seed=4)


def test_an_answer_to_the_same_prompt_is_not_taken() -> None:
    train = [ranking(0), ranking(0), ranking(0), ranking(1)]
    for seed in range(8):
        changed = with_mismatched(train, seed)
        assert [each.responses[3] for each in changed[:3]] == [[21, 0]] * 3
        assert changed[3].responses[3] == [20, 0]


def test_merged_labelers_vote_for_it_as_for_their_worst() -> None:
    votes = ((1, 2, 3), (1, 1, 2))
    (changed, _) = with_mismatched([ranking(0, votes=votes), ranking(1, votes=votes)], seed=0)
    assert changed.votes == ((1, 2, 3, 3), (1, 1, 2, 2))


def test_one_prompt_alone_has_no_other() -> None:
    with pytest.raises(ConfigError, match="mismatched_answers needs comparisons of more than one prompt; leave it out"):
        with_mismatched([ranking(0), ranking(0)], seed=0)


def test_only_what_is_trained_on_is_changed(small_base: Path, tmp_path: Path) -> None:
    loads = {}
    for mismatched in (False, True):
        recipe = load_recipe(write_recipe(tmp_path / "r.yaml", small_recipe(small_base)))
        data = written(tmp_path, comparisons())
        config = replace(recipe.reward_model, data=data, held_out=0.3, second_half=True, mismatched_answers=mismatched)
        loads[mismatched] = load_rankings(config, job(tmp_path, {"sft": small_base}), load_tokenizer(small_base))[0]
    plain, changed = loads[False], loads[True]
    assert changed.held_out == plain.held_out
    for name in ("train", "second"):
        before, after = getattr(plain, name), getattr(changed, name)
        assert [each._replace(responses=each.responses[:3], ranks=each.ranks[:3]) for each in after] == before
        assert {tuple(each.responses[3]) for each in after} <= {tuple(each.responses[0]) for each in before}
