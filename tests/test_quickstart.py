"""The embedded quickstart runs on its committed base model; in full (slow) it does what README says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main

ROOT = Path(__file__).parent.parent
DATA = "python:data_schema.quickstart.data"
# The same stages and settings on a fraction of the data.
SMALLER = [
    "--sft.data",
    f'[{{"path": "{DATA}:demonstrations", "limit": 1300}}]',
    "--comparisons.prompts",
    f'[{{"path": "{DATA}:prompts", "limit": 300}}]',
    "--comparisons.held_out_prompts=100",
    "--reward_model.normalise_rows=100",
    "--ppo.iterations=2",
    "--ppo.rollout_batch=64",
    "--ppo.pretraining_data",
    f'[{{"path": "{DATA}:documents", "limit": 600}}]',
    "--evaluate.n_prompts=60",
    "--tracking.wandb=disabled",
]


def run(recipe: str, root: Path, *overrides: str) -> dict:
    assert main(["run", str(ROOT / "recipes" / f"{recipe}.yaml"), "--root", str(root), *overrides]) == 0
    summary: dict = json.loads((root / "pipelines" / recipe / "summary.json").read_text())
    return summary


@pytest.mark.timeout(300)
def test_the_quickstart_pipeline_runs_and_shares_its_first_stages_with_the_one_without_kl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the recipe names the base model from there
    summary = run("quickstart", tmp_path, *SMALLER)
    assert list(summary["stages"]) == ["sft", "comparisons", "reward_model", "ppo", "evaluate"]
    assert not any(stage["skipped"] for stage in summary["stages"].values())
    sft = summary["evaluation"]["sft"]
    # 40 steps from a base model that has never seen an instruction: most answers end, and some are right.
    assert sft["eos_rate"] > 0.8
    assert sft["correctness_mean"] > 0.2
    assert summary["reward_model"]["n"] > 200
    # The verdicts in the base model's text make right from wrong easy to learn.
    assert summary["reward_model"]["pair_accuracy"] > 0.6

    without_kl = run("quickstart_no_kl", tmp_path, *SMALLER)
    skipped = [name for name, stage in without_kl["stages"].items() if stage["skipped"]]
    assert skipped == ["sft", "comparisons", "reward_model"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_beats_sft_on_gold_and_correctness_does_not_fall(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    evaluation = run("quickstart", tmp_path, "--seed", str(seed), "--tracking.wandb=disabled")["evaluation"]
    assert evaluation["ppo"]["win_rate_low"] > 0.5
    assert evaluation["ppo"]["gold_mean"] > evaluation["sft"]["gold_mean"]
    assert evaluation["ppo"]["correctness_mean"] >= evaluation["sft"]["correctness_mean"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_instructgpt_preset_with_27_8_stays_near_on_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the recipe's learning rates, forty times the preset's: text is read better than by the SFT model, the KL stays
    that of tuning on text (5 in the whole quickstart), and no step comes near the bounds that would stop the run."""
    monkeypatch.chdir(ROOT)
    rows = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    needed = ("prompts", "sampling", "pretraining_data", "monitor")
    rows["ppo"] = {key: rows["ppo"][key] for key in needed} | {
        "preset": "instructgpt",
        "pretraining_length": 16,
        "optimizer": {"learning_rate": 3e-4, "warmup_steps": 2},
        "value_optimizer": {"learning_rate": 5e-4, "warmup_steps": 2},
    }
    recipe = tmp_path / "preset.yaml"
    recipe.write_text(yaml.safe_dump(rows))
    settings = [word.replace("ppo.iterations=2", "ppo.iterations=12") for word in SMALLER]
    assert main(["run", str(recipe), "--root", str(tmp_path), *settings]) == 0
    summary = json.loads((tmp_path / "pipelines" / "quickstart" / "summary.json").read_text())
    record = tmp_path / "runs" / summary["stages"]["ppo"]["key"] / "metrics.jsonl"
    logged = [json.loads(line) for line in record.read_text().splitlines()]
    numbers = [number for row in logged for number in row.values()]
    assert len(logged) == 12 and all(isinstance(x, float | int) and math.isfinite(x) for x in numbers)
    text = [row["policy/pretraining_loss"] for row in logged]
    assert max(text) < text[0] + 0.1 and text[-1] < text[0] - 0.1
    assert max(row["objective/kl"] for row in logged) < 10
    assert max(row["policy/approx_kl_k3"] for row in logged) < 0.5
    assert max(row["policy/mean_ratio"] for row in logged) < 2
