from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_recipe import WORLD, Chain, job

from data_schema import Prompt, load_all
from data_schema.quickstart.world import judge
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from stages.errors import ConfigError
from stages.evaluate import stage as evaluate
from stages.evaluate.stage import RESULT_FILE, SAMPLES_FILE, compare


def evaluation(chain: Chain, folder: Path, **changes: Any) -> Any:
    config = replace(load_recipe(chain.path).evaluate, **changes)
    given = job(folder, {role: chain.checkpoint(role) for role in ("sft", "reward_model", "ppo")})
    return evaluate.run(config, given)


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


def test_equal_scores_are_half_a_win() -> None:
    assert compare([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 3.0, 5.0])["win_rate"] == (1 + 2 * 0.5) / 4
    assert compare([1.0] * 8, [1.0] * 8)["win_rate"] == 0.5
    lost = compare([0.0] * 8, [1.0] * 8)
    assert lost["win_rate"] == 0 < lost["win_rate_high"] < 0.5


def rude_judge(meta: Any, response: str, finished: bool) -> dict[str, float]:
    return {"gold": float(finished), "words": 2.0, "reward": 7.0, "length": 7.0, "response": 7.0}


def test_a_judge_s_scores_do_not_replace_the_evaluation_s_own_numbers(chain: Chain, tmp_path: Path) -> None:
    plain = evaluation(chain, tmp_path / "plain").metrics["models"]["sft"]
    config = replace(load_recipe(chain.path).evaluate, judge="test_evaluate_stage:rude_judge")
    given = job(tmp_path / "rude", {role: chain.checkpoint(role) for role in ("sft", "reward_model", "ppo")})
    found = evaluate.run(config, given).metrics["models"]["sft"]
    for name in ("reward_mean", "length_mean"):
        assert found[name] == plain[name]
    assert found["words_mean"] == 2.0 and "response_mean" not in found
    assert all(isinstance(row["sft"]["response"], str) for row in samples(tmp_path / "rude" / "output"))
    [warning] = {text for text in given.tracker.warnings if "recorded" in text}
    assert "not recorded ('response', 'reward', 'length')" in warning


def test_prompts_seen_in_training_are_left_out_and_counted(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = [Source(f"{WORLD}:prompts", limit=30), Source(f"{WORLD}:prompts", split="test", limit=10)]
    result = evaluation(chain, tmp_path, prompts=mixed, n_prompts=40)
    trained_on = {record.prompt[0].content for record in load_all(mixed[:1], Prompt, 0)}
    account = result.data["prompts"]
    assert account["dropped"]["trained on"] == len(trained_on)  # PPO's own first prompts, each text counted once
    assert account["used"] == 10
    assert not trained_on & {row["prompt"] for row in samples(tmp_path / "output")}
    assert "prompts that were trained on" in caplog.text


def test_with_nothing_but_training_prompts_there_is_no_evaluation(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0 of \d+ prompts are left \(\d+ were trained on.*no other stage uses"):
        evaluation(chain, tmp_path, prompts=[Source(f"{WORLD}:prompts", limit=30)])


def test_the_numbers_follow_from_the_published_samples(chain: Chain) -> None:
    directory = chain.checkpoint("evaluate")
    result = json.loads((directory / RESULT_FILE).read_text())
    rows, models = samples(directory), result["models"]
    assert result["n_prompts"] == len(rows) == 16
    prompts = {
        record.prompt[0].content: record for record in load_all(load_recipe(chain.path).evaluate.prompts, Prompt, 0)
    }
    for model in ("sft", "ppo"):
        for part in ("gold", "correctness", "style"):
            mean = sum(row[model][part] for row in rows) / len(rows)
            assert models[model][f"{part}_mean"] == pytest.approx(mean)
        for row in rows:
            graded = [judge(prompts[row["prompt"]].meta, row[model]["response"], end)["gold"] for end in (True, False)]
            assert row[model]["gold"] in graded
    wins = sum(
        1.0 if row["ppo"]["gold"] > row["sft"]["gold"] else 0.5 if row["ppo"]["gold"] == row["sft"]["gold"] else 0.0
        for row in rows
    )
    assert models["ppo"]["win_rate"] == pytest.approx(wins / len(rows))


def test_without_a_judge_the_reward_model_decides_and_the_report_says_so(chain: Chain, tmp_path: Path) -> None:
    result = evaluation(chain, tmp_path, judge=None)
    assert result.metrics["decided_by"] == "reward model"
    assert "gold_mean" not in result.metrics["models"]["ppo"]
    rows = samples(tmp_path / "output")
    wins = sum(row["ppo"]["reward"] > row["sft"]["reward"] for row in rows)
    ties = sum(row["ppo"]["reward"] == row["sft"]["reward"] for row in rows)
    assert result.metrics["models"]["ppo"]["win_rate"] == pytest.approx((wins + ties / 2) / len(rows))


def test_a_model_against_itself_is_a_draw_at_no_distance(chain: Chain, tmp_path: Path) -> None:
    config = load_recipe(chain.path).evaluate
    given = job(tmp_path, {"sft": chain.checkpoint("sft"), "ppo": chain.checkpoint("sft")})
    given.parents["reward_model"] = chain.checkpoint("reward_model")
    models = evaluate.run(config, given).metrics["models"]
    assert models["ppo"]["win_rate"] == 0.5
    assert models["ppo"]["kl"] == pytest.approx(0, abs=1e-5)
    assert models["ppo"]["gold_mean"] == models["sft"]["gold_mean"]
