"""The second reward model, trained on the other half of the comparisons, through the real stage."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_recipe import Chain, job, small_recipe, store_contents, write_recipe
from transformers import AutoModelForSequenceClassification

from data_schema import Comparison, DataError, Message, Records, load_all, prompt_text, write_records
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.encoding import encode_answers
from policy.language_model import load_tokenizer
from reward.scalar_model import load_scalar_model, stored_normalisation
from reward.scoring import score_responses
from stages.errors import ConfigError
from stages.job import halves, keep_back, prompt_hash, read_seen_prompts
from stages.reward_model import stage as reward_model
from stages.reward_model.ensemble import member_seed
from stages.reward_model.second import SECOND, second_model
from stages.settings import LoraConfig, OptimizerConfig

CPU = torch.device("cpu")
WORDS = ["fox", "dog", "owl", "cat", "hen", "saw", "axe", "fig"]
WAYS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": LoraConfig(rank=2)}, "frozen": {"frozen_layers": 1}}


def comparisons(words: list[str] = WORDS, **fields: Any) -> list[Comparison]:
    return [
        Comparison(
            f"{a}{b}",
            "test",
            prompt=(Message("user", f"repeat these words : {a} {b}"),),
            responses=(f"{b} .", f"bear {b}", "."),
            ranks=(1, 2, 2),
            **fields,
        )
        for a in words
        for b in words
    ]


def records(rows: list[Comparison]) -> Records[Comparison]:
    return Records.of(Comparison, rows)


def prompts(rows: Any) -> set[str]:
    return {prompt_text(row) for row in rows}


def written(folder: Path, rows: Any) -> list[Source]:
    folder.mkdir(exist_ok=True, parents=True)
    write_records(folder / "comparisons.jsonl", rows)
    return [Source(str(folder / "comparisons.jsonl"))]


def train(base: Path, folder: Path, rows: Any, seed: int = 0, **changes: Any) -> tuple[Path, Any, Any]:
    """-> (what would be published, the stage's result, its job)."""
    data = written(folder, rows)
    recipe = load_recipe(write_recipe(folder / "r.yaml", small_recipe(base)))
    settings = {"batch_prompts": 4, "held_out": 0.3, "second_half": True, "optimizer": OptimizerConfig(1e-2)} | changes
    given = job(folder, {"sft": base}, seed)
    result = reward_model.run(replace(recipe.reward_model, data=data, **settings), given)
    return folder / "output", result, given


def parts(seed: int = 0) -> tuple[Any, Any, Any]:
    """-> (first half, second half, held out), as the stage divides them."""
    kept, held_out = keep_back(records(comparisons()), 0.3, seed)
    return *halves(kept, seed, "x"), held_out


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForSequenceClassification.from_pretrained(directory).state_dict())


def test_the_halves_share_no_prompt_and_no_group_and_miss_no_row() -> None:
    rows = comparisons()
    grouped = [replace(row, group=row.id[:3]) for row in rows]
    for given in (rows, grouped):
        first, second = halves(records(given), 0, "x")
        assert sorted(row.id for row in (*first, *second)) == sorted(row.id for row in given)
        assert first and second and not prompts(first) & prompts(second)
    assert not {row.group for row in first} & {row.group for row in second}
    same_prompt = records([*rows, *(replace(row, id=f"{row.id}2", responses=("a", "b"), ranks=(1, 2)) for row in rows)])
    first, second = halves(same_prompt, 0, "x")
    assert not prompts(first) & prompts(second)


def test_the_halves_depend_on_the_seed_and_on_no_order() -> None:
    rows = comparisons()
    first, _ = halves(records(rows), 0, "x")
    again, _ = halves(records(rows[::-1]), 0, "x")
    other, _ = halves(records(rows), 1, "x")
    assert prompts(first) == prompts(again) != prompts(other)


@pytest.mark.parametrize("held_out", [0.1, 0.5, 0.8])
def test_both_are_halves_however_much_was_held_out(held_out: float) -> None:
    many = comparisons([f"{a}{b}" for a in "abcdef" for b in WORDS])
    kept, _ = keep_back(records(many), held_out, 3)
    first, _ = halves(kept, 3, "x")
    assert 0.4 < len(first) / len(kept) < 0.6


def test_rows_of_one_group_cannot_be_halved_and_the_error_names_the_setting() -> None:
    with pytest.raises(DataError, match=r"reward_model.second_half is true, but .*share a group.*second_half to false"):
        halves(records(comparisons(group="one")), 0, "reward_model.second_half")


@pytest.mark.parametrize("way", WAYS)
def test_each_model_is_the_one_that_its_half_alone_would_give(small_base: Path, tmp_path: Path, way: str) -> None:
    output, _, _ = train(small_base, tmp_path / "both", comparisons(), **WAYS[way])
    first, second, _ = parts()
    alone = {"held_out": 0.0, "second_half": False, **WAYS[way]}
    one, _, _ = train(small_base, tmp_path / "one", first, **alone)
    two, _, _ = train(small_base, tmp_path / "two", second, seed=member_seed(0, 1), **alone)
    for together, apart in ((output, one), (output / SECOND, two)):
        expected = weights(apart)
        assert all(torch.equal(value, expected[name]) for name, value in weights(together).items())
        mine, theirs = (stored_normalisation(load_scalar_model(path, CPU)) for path in (together, apart))
        assert mine == theirs
    assert any(not torch.equal(value, weights(output)[name]) for name, value in weights(output / SECOND).items())


@pytest.mark.parametrize("way", WAYS)
def test_the_second_model_is_a_whole_checkpoint_with_its_own_scale(small_base: Path, tmp_path: Path, way: str) -> None:
    output, result, _ = train(small_base, tmp_path, comparisons(), **WAYS[way])
    second = second_model(output)
    assert second == output / SECOND and second_model(second) is None
    copy = Path(shutil.copytree(second, tmp_path / "elsewhere"))
    scale = stored_normalisation(load_scalar_model(copy, CPU))
    told = result.metrics["second"]
    assert (scale.gain, scale.bias) == (told["reward_gain"], told["reward_bias"])
    assert scale != stored_normalisation(load_scalar_model(output, CPU))
    assert load_tokenizer(copy).chat_template == load_tokenizer(output).chat_template
    assert "second/" in (output / "README.md").read_text()
    assert f"{scale.gain:.10g}" in (copy / "README.md").read_text()
    assert (copy / "adapter").is_dir() == (way == "lora")


def test_both_are_judged_on_the_same_pairs_and_the_numbers_are_those_of_the_published_models(
    small_base: Path, tmp_path: Path
) -> None:
    output, result, _ = train(small_base, tmp_path, comparisons())
    held_out = parts()[2]
    tokenizer = load_tokenizer(output)
    scores = []
    for directory, told in ((output, result.metrics), (output / SECOND, result.metrics["second"])):
        model, right, n, found = load_scalar_model(directory, CPU), 0, 0, []
        for row in held_out:
            prompt, answers = encode_answers(tokenizer, row.prompt, row.responses)
            own = score_responses(model, [prompt] * len(answers), answers, tokenizer.pad_token_id).tolist()
            pairs = [(i, j) for i in range(3) for j in range(3) if row.ranks[i] < row.ranks[j]]
            right, n = right + sum(own[i] > own[j] for i, j in pairs), n + len(pairs)
            found += own
        assert told["n"] == n and told["pair_accuracy"] == pytest.approx(right / n)
        scores.append(found)
    r = np.corrcoef(*scores)[0, 1]
    assert result.metrics["second"]["score_correlation"] == pytest.approx(r, abs=1e-4)
    means = [np.repeat(np.reshape(row, (-1, 3)).mean(1), 3) for row in scores]
    within = np.corrcoef(np.array(scores[0]) - means[0], np.array(scores[1]) - means[1])[0, 1]
    assert result.metrics["second"]["score_correlation_within_prompts"] == pytest.approx(within, abs=1e-4)
    assert f"correlate {r:.2f}" in (output / "README.md").read_text()


def test_without_held_out_pairs_nothing_is_claimed(small_base: Path, tmp_path: Path) -> None:
    output, result, _ = train(small_base, tmp_path, comparisons(), held_out=0.0, frozen_layers=1)
    assert result.metrics["second"]["n"] == 0 and "score_correlation" not in result.metrics["second"]
    assert "Second reward model" in (output / "README.md").read_text()


def test_the_first_checkpoint_names_the_prompts_of_both_the_second_those_of_its_own(
    small_base: Path, tmp_path: Path
) -> None:
    output, _, _ = train(small_base, tmp_path, comparisons(), frozen_layers=1)
    first, second, held_out = ({prompt_hash(row) for row in part} for part in parts())
    assert read_seen_prompts([output]) == first | second and not held_out & (first | second)
    assert read_seen_prompts([output / SECOND]) == second


@pytest.mark.parametrize("way", WAYS)
def test_the_first_model_is_freed_before_the_second_is_loaded(
    small_base: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = reward_model.from_language_model
    alive: list[int] = []
    models: list[weakref.ref[Any]] = []

    def watched(*args: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        model = before(*args)
        models.extend([weakref.ref(model), *(weakref.ref(weight) for weight in model.parameters())])
        return model

    gc.collect()
    monkeypatch.setattr(reward_model, "from_language_model", watched)
    train(small_base, tmp_path, comparisons(), **WAYS[way])
    assert alive == [0, 0]


def test_the_second_model_has_curves_of_its_own_after_those_of_the_first(small_base: Path, tmp_path: Path) -> None:
    _, result, given = train(small_base, tmp_path, comparisons())
    steps = {
        name: [row["step"] for row in given.tracker.records if f"{name}/loss" in row]
        for name in ("reward_model", "reward_model/second")
    }
    assert max(steps["reward_model"]) == result.metrics["steps"] < min(steps["reward_model/second"])
    assert any("reward_model/second/held_out/pair_accuracy" in row for row in given.tracker.records)


def test_a_second_model_and_an_ensemble_are_refused_together(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward_model has ensemble and second_half; .*: drop one") as error:
        train(small_base, tmp_path, comparisons(), ensemble=2, lora=LoraConfig())
    assert "\n" not in str(error.value)


def test_collected_comparisons_are_halved_too_and_published_in_the_store(
    chain: Chain, copy_of_chain: Path, tmp_path: Path
) -> None:
    path = write_recipe(
        tmp_path / "r.yaml", chain.recipe, reward_model__second_half=True, reward_model__batch_prompts=2, evaluate=...
    )
    summary = run_pipeline(load_recipe(path), copy_of_chain, quiet=True)
    told = summary["reward_model"]
    assert told["second"]["n"] == told["n"] > 0 and "score_correlation" in told["second"]
    key = summary["stages"]["reward_model"]["key"]
    assert f"checkpoints/{key}/second/model.safetensors" in store_contents(copy_of_chain)
    manifest = json.loads((copy_of_chain / "store" / "checkpoints" / key / "manifest.json").read_text())
    assert "second/config.json" in json.dumps(manifest["files"])


def test_a_half_that_fills_no_batch_is_found_before_the_run(chain: Chain, tmp_path: Path) -> None:
    data = written(tmp_path, comparisons())
    changes = {
        "comparisons": ...,
        "reward_model__data": {"path": data[0].path},
        "reward_model__second_half": True,
        "reward_model__batch_prompts": 40,
    }
    path = write_recipe(tmp_path / "r.yaml", chain.recipe, **changes)
    assert len(load_all(data, Comparison, 0)) > 50
    with pytest.raises(ConfigError, match=r"reward_model: .* rows within max_length are fewer than one batch of 40"):
        run_pipeline(load_recipe(path), tmp_path / "out")
    assert store_contents(tmp_path / "out") == []
