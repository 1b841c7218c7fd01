"""What evaluation measures beside wins: the second reward model's verdict, collapse, dependence on prompts, losses."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_recipe import WORLD, Chain, job, write_recipe
from test_evaluate_stage import samples
from test_reward_model_second import comparisons, written
from tiny_models import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from checkpoint_store import CheckpointStore
from data_schema import Document, load_all
from data_schema.sources import Source
from pipeline.plan import plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.errors import ModelError
from policy.language_model import load_tokenizer, save_checkpoint
from policy.pretraining import pack_documents
from policy.sampling.rollout import as_rollout
from policy.special_tokens import without_last_stop
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from stages.answering import Unseen
from stages.errors import ConfigError
from stages.evaluate import measurements
from stages.evaluate import stage as evaluate
from stages.evaluate.answers import with_other_prompts
from stages.evaluate.collapse import measure_collapse
from stages.evaluate.comparison import gain
from stages.evaluate.measurements import Measured, measure
from stages.evaluate.stage import RESULT_FILE
from stages.ppo.reward_settings import RewardPart
from stages.reward_model import stage as reward_model

CPU = torch.device("cpu")
TEXT = Source(f"{WORLD}:documents", limit=40)
COLLAPSE = ("distinct_share", "same_opening_share", "repeated_8grams", "repetition")


@pytest.fixture(scope="module")
def two_models(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a second one, over the chain's SFT model."""
    folder = tmp_path_factory.mktemp("two")
    config = replace(
        load_recipe(chain.path).reward_model, data=written(folder, comparisons()), second_half=True, batch_prompts=4
    )
    reward_model.run(config, job(folder, {"sft": chain.checkpoint("sft")}))
    return folder / "output"


def parents(chain: Chain, scorer: Path | None = None) -> dict[str, Path]:
    named = {role: chain.checkpoint(role) for role in ("sft", "reward_model", "ppo")}
    return named | ({"reward_model": scorer} if scorer else {})


def config_of(chain: Chain, **changes: Any) -> Any:
    return replace(load_recipe(chain.path).evaluate, **{"base_model": str(chain.base), "judge": None, **changes})


def measured(chain: Chain, folder: Path, scorer: Path | None = None, **changes: Any) -> tuple[Measured, Unseen]:
    config, given = config_of(chain, **changes), job(folder, parents(chain, scorer))
    asked, data = evaluate.evaluation_prompts(config, given)
    return measure(config, given, asked, data), asked


def test_without_a_judge_the_second_reward_model_decides(chain: Chain, two_models: Path, tmp_path: Path) -> None:
    result = evaluate.run(config_of(chain), job(tmp_path, parents(chain, two_models)))
    assert result.metrics["decided_by"] == "second reward model"
    rows, ppo = samples(tmp_path / "output"), result.metrics["models"]["ppo"]
    wins = sum(row["ppo"]["second_reward"] > row["sft"]["second_reward"] for row in rows)
    ties = sum(row["ppo"]["second_reward"] == row["sft"]["second_reward"] for row in rows)
    assert ppo["win_rate"] == pytest.approx((wins + ties / 2) / len(rows))
    for key in ("reward", "second_reward"):
        ours, theirs = (np.array([row[model][key] for row in rows]) for model in ("ppo", "sft"))
        assert ppo[f"{key}_mean"] == pytest.approx(ours.mean())
        difference = (ours - theirs) / theirs.std(ddof=1)
        half = 1.959964 * difference.std(ddof=1) / len(rows) ** 0.5
        found = [ppo[f"{key}_gain_sd{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx([difference.mean(), difference.mean() - half, difference.mean() + half])
    assert ppo["reward_mean"] != ppo["second_reward_mean"]
    assert json.loads((tmp_path / "output" / RESULT_FILE).read_text())["decided_by"] == "second reward model"


def test_a_judge_decides_before_the_second_reward_model_whose_scores_are_recorded(
    chain: Chain, two_models: Path, tmp_path: Path
) -> None:
    judge = load_recipe(chain.path).evaluate.judge
    result = evaluate.run(config_of(chain, judge=judge), job(tmp_path, parents(chain, two_models)))
    assert result.metrics["decided_by"] == "judge"
    assert result.metrics["models"]["ppo"]["win_rate"] == chain.summary["evaluation"]["ppo"]["win_rate"]
    assert "second_reward_mean" in result.metrics["models"]["sft"]


def test_the_scores_and_the_dependence_on_the_prompt_are_those_of_the_published_models(
    chain: Chain, two_models: Path, tmp_path: Path
) -> None:
    found, asked = measured(chain, tmp_path, two_models)
    other = with_other_prompts(asked, 0)
    pad_id = load_tokenizer(two_models).pad_token_id
    for name, answers in found.answers.items():
        for directory, own, key in (
            (two_models, answers.rewards, "first_prompt_dependence"),
            (two_models / "second", answers.second, "prompt_dependence"),
        ):
            model = load_scalar_model(directory, CPU)
            assert own == pytest.approx(score_responses(model, asked.ids, answers.ids, pad_id).tolist(), abs=1e-4)
            elsewhere = score_responses(model, other.ids, answers.ids, pad_id)
            expected = float(np.mean(own) - elsewhere.mean())
            assert found.numbers[name][key] == pytest.approx(expected, abs=1e-4) != 0


def test_each_answer_meets_another_prompt_and_each_prompt_is_met_once(chain: Chain, tmp_path: Path) -> None:
    _, asked = measured(chain, tmp_path)
    for seed in range(5):
        other = with_other_prompts(asked, seed)
        assert all(a != b for a, b in zip(asked.prompts, other.prompts, strict=True))
        assert sorted(p.id for p in other.prompts) == sorted(p.id for p in asked.prompts)
        assert [asked.ids[asked.prompts.index(p)] for p in other.prompts] == other.ids
    assert with_other_prompts(asked, 0) == with_other_prompts(asked, 0) != with_other_prompts(asked, 1)


def hugging_face_losses(model: Any, before: Sequence[int], ids: Sequence[int]) -> float:
    """Sum of -log p over `ids`, read one row at a time by the model's own forward."""
    labels = torch.tensor([[-100] * len(before) + list(ids)])
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([[*before, *ids]]), labels=labels).loss) * len(ids)


@pytest.mark.parametrize("known", [True, False])
def test_the_loss_of_the_answers_is_that_of_the_base_model_without_the_end_of_the_answer(
    chain: Chain, tmp_path: Path, known: bool
) -> None:
    found, asked = measured(chain, tmp_path, base_model=str(chain.base) if known else None)
    source = chain.base if known else chain.checkpoint("sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), load_tokenizer(source)
    for name, answers in found.answers.items():
        texts = [without_last_stop(tokenizer, ids) for ids in answers.ids]
        assert any(len(a) < len(b) for a, b in zip(texts, answers.ids, strict=True))
        total = sum(hugging_face_losses(model, asked.ids[i], ids) for i, ids in enumerate(texts) if ids)
        expected = total / sum(map(len, texts))
        assert found.numbers[name]["base_nll_answers" if known else "sft_nll_answers"] == pytest.approx(expected, 1e-4)
        assert ("sft_nll_answers" in found.numbers[name]) != known


def test_the_loss_on_plain_text_is_that_of_each_model_and_of_the_base_model(chain: Chain, tmp_path: Path) -> None:
    changes = {"text": [TEXT], "text_rows": 5, "text_length": 12}
    result = evaluate.run(config_of(chain, **changes), job(tmp_path, parents(chain)))
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    rows = pack_documents(tokenizer, load_all([TEXT], Document, 0), 12)[:5]
    models = result.metrics["models"]
    for source, loss in (
        (chain.checkpoint("sft"), models["sft"]["text_nll"]),
        (chain.checkpoint("ppo"), models["ppo"]["text_nll"]),
        (chain.base, result.metrics["base_text_nll"]),
    ):
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        total = sum(hugging_face_losses(model, row[:1].tolist(), row[1:].tolist()) for row in rows)
        assert loss == pytest.approx(total / (5 * 11), 1e-4)
    assert result.data["text"]["records"] == 40


def test_collapse_is_measured_on_the_answers_without_their_end(chain: Chain, tmp_path: Path) -> None:
    found, _ = measured(chain, tmp_path)
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    for name, answers in found.answers.items():
        expected = measure_collapse([without_last_stop(tokenizer, ids) for ids in answers.ids])
        assert {key: found.numbers[name][key] for key in COLLAPSE} == expected


def says_one_thing(model: Any, prompts: Any, *, stop_ids: Any, pad_id: int, **_: Any) -> Any:
    return as_rollout(prompts, [[7, 8, 9, stop_ids[0]]] * len(prompts), pad_id, CPU)


def test_a_policy_that_says_one_thing_is_doubted_unless_sft_says_it_too(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer from a real engine, first for both models and then for the policy alone."""
    config = config_of(chain)
    engine = replace(config.sampling, engine="test_evaluate_measurements:says_one_thing")
    same = job(tmp_path / "same", parents(chain))
    models = evaluate.run(replace(config, sampling=engine), same).metrics["models"]
    assert models["ppo"]["distinct_share"] == 1 / 16 and models["ppo"]["same_opening_share"] == 1.0
    assert not [text for text in same.tracker.warnings if "alike" in text]

    def of_the_policy_alone(model: Any, *given: Any) -> Any:
        chosen = config if model is given[0] else replace(config, sampling=engine)
        return before(model, *given[:4], chosen, *given[5:])

    before = measurements.answer
    monkeypatch.setattr(measurements, "answer", of_the_policy_alone)
    collapsed = job(tmp_path / "collapsed", parents(chain))
    evaluate.run(config, collapsed)
    (told,) = (text for text in collapsed.tracker.warnings if "alike" in text)
    assert "6.2% of its answers are distinct (SFT: " in told and "100.0% (SFT: " in told


def test_prompts_that_either_half_was_trained_on_are_left_out(chain: Chain, two_models: Path, tmp_path: Path) -> None:
    rows = [{"id": row.id, "prompt": row.prompt[0].content} for row in comparisons()]
    random.Random(0).shuffle(rows)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(chain, prompts=[Source(str(tmp_path / "prompts.jsonl"))], n_prompts=60)
    asked, data = evaluate.evaluation_prompts(config, job(tmp_path, parents(chain, two_models)))
    assert data["prompts"]["dropped"]["trained on"] + len(asked.prompts) == len(rows)
    kept = {prompt.prompt[0].content for prompt in asked.prompts}
    from data_schema import Comparison
    from stages.job import halves, keep_back

    train, _ = keep_back(load_all(written(tmp_path / "again", comparisons()), Comparison, 0), 0.1, 0)
    for half in halves(train, 0, "x"):
        assert len(half) and not kept & {row.prompt[0].content for row in half}


def test_rewards_by_code_alone_have_neither_a_second_model_nor_a_dependence(chain: Chain, tmp_path: Path) -> None:
    config = config_of(chain, rewards=[RewardPart(length_penalty=3)])
    given = {role: path for role, path in parents(chain).items() if role != "reward_model"}
    result = evaluate.run(config, job(tmp_path, given))
    assert result.metrics["decided_by"] == "reward"
    assert not {"prompt_dependence", "second_reward_mean"} & result.metrics["models"]["ppo"].keys()


def test_scores_without_spread_have_no_gain_in_deviations() -> None:
    assert gain("x", [1.0, 2.0], [3.0, 3.0]) == {}
    assert gain("x", [2.0, 4.0], [1.0, 3.0])["x"] == pytest.approx(1 / 2**0.5)


def test_a_base_model_with_other_tokens_is_refused_before_the_run_and_by_the_stage(
    chain: Chain, copy_of_chain: Path, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    save_checkpoint(tiny_llama(tokenizer), tokenizer, tmp_path / "other")
    with pytest.raises(ModelError, match=r"evaluate.base_model .*other ids.*give the model that SFT started from"):
        evaluate.run(config_of(chain, base_model=str(tmp_path / "other")), job(tmp_path, parents(chain)))
    path = write_recipe(tmp_path / "r.yaml", chain.recipe, evaluate__base_model=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"evaluate.base_model .*other ids"):
        run_pipeline(load_recipe(path), copy_of_chain)


def test_the_pipeline_reads_the_base_model_of_its_own_sft_stage_and_of_no_other(chain: Chain, tmp_path: Path) -> None:
    for model in chain.summary["evaluation"].values():
        assert {*COLLAPSE, "base_nll_answers", "prompt_dependence"} <= model.keys()
    store = CheckpointStore(chain.root / "store")
    own = plan_pipeline(load_recipe(chain.path), store)[-1]
    assert own.config.base_model == str(chain.base)
    elsewhere = shutil.copytree(
        chain.checkpoint("sft"), tmp_path / "elsewhere", ignore=shutil.ignore_patterns("manifest*")
    )
    recipe = write_recipe(tmp_path / "r.yaml", chain.recipe, evaluate__sft=str(elsewhere))
    other = plan_pipeline(load_recipe(recipe), store)[-1]
    assert other.config.base_model is None and other.key != own.key


def test_plain_text_that_does_not_fit_is_found_before_the_run(
    chain: Chain, copy_of_chain: Path, tmp_path: Path
) -> None:
    text = {"path": TEXT.path, "limit": 2}
    for length, said in ((500, "text_length is 500, but the model has positions for 128"), (120, "more text")):
        changes = {"evaluate__text": text, "evaluate__text_length": length}
        path = write_recipe(tmp_path / "r.yaml", chain.recipe, **changes)
        with pytest.raises(ConfigError, match=said):
            run_pipeline(load_recipe(path), copy_of_chain)
