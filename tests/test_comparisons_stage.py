from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_recipe import JUDGE, Chain, job

from data_schema import Comparison, Message, Prompt, read_records
from data_schema.quickstart.world import judge
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from stages.comparisons import stage as comparisons
from stages.comparisons.settings import ComparisonsConfig
from stages.comparisons.stage import ALL_TIE, HELD_OUT_FILE, TOO_FEW, TRAIN_FILE, how_to_keep, rank_answers
from stages.errors import ConfigError

PROMPT = Prompt("p", "test", (Message("user", "say a number"),), group="g", meta={"by": 1})


def by_number(meta: Mapping[str, Any], answer: str, finished: bool) -> dict[str, float]:
    return {"gold": float(answer)}


def ranks(answers: list[str], noise: float = 0.0, seed: int = 0, tie_margin: float = 0.0) -> Comparison | str:
    config = ComparisonsConfig(prompts=[Source("x")], labeler=JUDGE, tie_margin=tie_margin)
    return rank_answers(PROMPT, answers, by_number, config, noise, random.Random(seed))


def test_the_best_answer_has_rank_1_and_answers_stay_in_the_order_drawn() -> None:
    found = ranks(["0.2", "0.9", "0.5"])
    assert isinstance(found, Comparison)
    assert (found.responses, found.ranks) == (("0.2", "0.9", "0.5"), (3, 1, 2))
    assert (found.id, found.group, found.prompt, found.labeler) == ("p", "g", PROMPT.prompt, JUDGE)


def test_scores_within_the_tie_margin_share_a_rank() -> None:
    found = ranks(["0.50", "0.48", "0.90"], tie_margin=0.03)
    assert isinstance(found, Comparison) and found.ranks == (2, 2, 1)


@pytest.mark.parametrize(
    ("answers", "why"),
    [(["0.5"], "fewer than two answers that differ"), ([], "fewer than two"), (["0.50", "0.51"], "all answers tie")],
)
def test_without_a_preference_there_is_no_comparison_but_a_reason(answers: list[str], why: str) -> None:
    found = ranks(answers, tie_margin=0.03)
    assert isinstance(found, str) and why in found


def test_label_noise_turns_round_the_stated_share_of_pairs() -> None:
    n = 4000
    flipped = sum(ranks(["0.1", "0.9"], noise=0.2, seed=seed).ranks == (1, 2) for seed in range(n))
    assert flipped / n == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / n) ** 0.5)
    assert all(ranks(["0.1", "0.9"], seed=seed).ranks == (2, 1) for seed in range(20))


def test_collected_comparisons_are_ranked_by_the_judge_and_held_out_prompts_are_apart(chain: Chain) -> None:
    train, held_out = (
        list(read_records(chain.checkpoint("comparisons") / name, Comparison)) for name in (TRAIN_FILE, HELD_OUT_FILE)
    )
    assert train and 0 < len(held_out) <= 16
    for record in [*train, *held_out]:
        gold = [judge(record.meta, answer, True)["gold"] for answer in record.responses]
        best_first = sorted(range(len(gold)), key=lambda i: record.ranks[i])
        assert [gold[i] for i in best_first] == sorted(gold, reverse=True)
        assert len(set(record.responses)) == len(record.responses) <= 4
        assert all(answer and "<" not in answer for answer in record.responses)
    assert not {record.id for record in train} & {record.id for record in held_out}


def test_equal_scores_share_a_rank_without_a_margin() -> None:
    found = ranks(["0.5", "0.50", "0.9", "0.4"])
    assert isinstance(found, Comparison) and found.ranks == (2, 2, 1, 3)
    assert ranks(["0.5", "0.50"]) == "all answers tie"


@pytest.mark.parametrize(
    ("ended", "margin", "few", "tie"),
    [
        (
            0.1,
            0.0,
            "90% of the answers were cut off: raise comparisons.sampling.max_new_tokens .here 64.",
            "finer scores",
        ),
        (0.9, 0.3, "the answers are alike: raise comparisons.answers_per_prompt", "or lower comparisons.tie_margin"),
    ],
)
def test_the_advice_fits_the_reason(ended: float, margin: float, few: str, tie: str) -> None:
    advice = how_to_keep(ComparisonsConfig(prompts=[Source("x")], labeler=JUDGE, tie_margin=margin), ended)
    assert re.search(few, advice[TOO_FEW]) and tie in advice[ALL_TIE]
    assert ("tie_margin" in advice[ALL_TIE]) == bool(margin)


def test_answers_that_all_tie_are_not_blamed_on_their_length(chain: Chain, tmp_path: Path) -> None:
    config: Any = load_recipe(chain.path, ["--comparisons.tie_margin=1000"]).comparisons
    given = job(tmp_path, {"sft": chain.checkpoint("sft")})
    with pytest.raises(ConfigError, match=r"all answers tie: \d+.*") as error:
        comparisons.run(config, given)
    assert "finer scores or lower comparisons.tie_margin" in str(error.value) or "cut off" in str(error.value)
