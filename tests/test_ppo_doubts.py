"""PPO, selection and evaluation warn of results that mean nothing, and publish them all the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_recipe import Chain, job

from pipeline.recipe import load_recipe
from stages.evaluate import stage as evaluate
from stages.ppo import stage as ppo
from stages.settings import SamplingConfig

CUT = SamplingConfig(max_new_tokens=1, batch_size=64)


def finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(finite(value) for value in values.values())
    return not isinstance(values, float) or math.isfinite(values)


def test_answers_that_never_end_are_said_once_and_one_answer_a_batch_is_published(chain: Chain, tmp_path: Path) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    config = load_recipe(chain.path, ["--ppo.pretraining_data=[]", "--ppo.pretraining_coef=0"]).ppo
    given = job(tmp_path, parents)
    found = ppo.run(replace(config, sampling=CUT, rollout_batch=1, minibatches=1, iterations=3), given)
    (ends,) = given.tracker.warnings
    assert ends.startswith("ppo (iteration 1): 0.0% of the answers end") and "ppo.sampling.max_new_tokens" in ends
    assert finite({name: value for name, value in found.metrics.items() if "explained" not in name})
    assert found.metrics["objective/score_std"] == 0
    assert (given.output / "model.safetensors").is_file()


def test_a_constant_score_is_said_once(chain: Chain, tmp_path: Path) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    config = replace(load_recipe(chain.path).ppo, sampling=CUT, iterations=2)
    given = job(tmp_path, parents)
    ppo.run(config, given)
    same = [text for text in given.tracker.warnings if "have the score -1," in text]
    assert len(same) == 1 and len(given.tracker.warnings) == 2


def test_a_sound_run_has_no_warnings(chain: Chain, tmp_path: Path) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    given = job(tmp_path, parents)
    ppo.run(load_recipe(chain.path).ppo, given)
    assert given.tracker.warnings == []


@pytest.mark.parametrize("n", [2, 16])
def test_an_evaluation_of_unfinished_answers_is_doubted(chain: Chain, tmp_path: Path, n: int) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model", "ppo")}
    given = job(tmp_path, parents)
    config = replace(load_recipe(chain.path).evaluate, sampling=CUT, n_prompts=n)
    found = evaluate.run(config, given)
    assert len(given.tracker.warnings) >= 2
    for name, text in zip(("sft", "ppo"), given.tracker.warnings, strict=False):
        assert text.startswith(f"evaluate ({name}): 0.0% of the answers end by themselves")
    json.dumps(found.metrics, allow_nan=False)
