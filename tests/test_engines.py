from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, store_contents

from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.language_model import LanguageModel
from policy.sampling.engines import RolloutEngine, rollout_of, transformers_rollout
from policy.sampling.rollout import Rollout, collect_rollout
from stages.errors import ConfigError

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]
ENGINES: list[RolloutEngine] = [collect_rollout, transformers_rollout]
CPU = torch.device("cpu")


def draw(engine: RolloutEngine, model: Any, seed: int = 0, **settings: Any) -> Rollout:
    plain = {"max_new_tokens": 8, "temperature": 1.0, "batch_size": 3, "stop_ids": [], "pad_id": 0}
    return engine(model, PROMPTS, rng=torch.Generator().manual_seed(seed), **plain | settings)


def same(one: Rollout, other: Rollout) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_engines_agree_on_all_but_chance(tiny: LanguageModel) -> None:
    cold = {"temperature": 1e-5, "answers_each": 2}
    eos = int(draw(collect_rollout, tiny.model, **cold).responses[0, 3])  # ends some of the answers
    ours, theirs = (draw(engine, tiny.model, stop_ids=[eos], **cold) for engine in ENGINES)
    assert same(ours, theirs)
    assert ours.ended.any() and not ours.ended.all()


def test_the_transformers_engine_draws_first_tokens_as_often_as_softmax_says(tiny: LanguageModel) -> None:
    n = 4000
    rollout = draw(transformers_rollout, tiny.model, temperature=2.0, max_new_tokens=1, answers_each=n, batch_size=n)
    with torch.no_grad():
        expected = (tiny.model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 2.0).softmax(-1)
    drawn = rollout.responses[:n, 0].bincount(minlength=len(expected)) / n
    assert ((drawn - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 2 / n).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_repeatable_and_leaves_the_global_generator_alone(
    tiny: LanguageModel, engine: RolloutEngine
) -> None:
    before = torch.random.get_rng_state()
    assert same(draw(engine, tiny.model, seed=1), draw(engine, tiny.model, seed=1))
    assert not same(draw(engine, tiny.model, seed=1), draw(engine, tiny.model, seed=2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("answers", "words"),
    [([[4, 1]], "1 answers to 2 prompts"), ([[4, 1], []], "answer 1 is empty"), ([[1, 4], [5]], "answer 0 goes on")],
)
def test_an_engine_that_answers_wrongly_is_told(answers: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rollout_of([[5], [6]], answers, [1], 0, CPU)


def test_ppo_learns_from_an_engine_the_recipe_names(chain: Chain, copy_of_chain: Path) -> None:
    engine = ["--ppo.sampling.engine", "policy.sampling.engines:transformers_rollout"]
    summary = run_pipeline(load_recipe(chain.path, engine), copy_of_chain)
    assert not summary["stages"]["ppo"]["skipped"] and summary["stages"]["reward_model"]["skipped"]
    assert summary["evaluation"]["ppo"]["kl"] not in (0, chain.summary["evaluation"]["ppo"]["kl"])


def test_an_engine_that_is_not_there_stops_the_run_before_it_starts(chain: Chain, copy_of_chain: Path) -> None:
    there = store_contents(copy_of_chain)
    with pytest.raises(ConfigError, match=r"ppo\.sampling\.engine: cannot find .policy\.nothing:here."):
        run_pipeline(load_recipe(chain.path, ["--ppo.sampling.engine", "policy.nothing:here"]), copy_of_chain)
    assert store_contents(copy_of_chain) == there
