"""The whole pipeline on the small recipe: what it writes, skips, redoes, and what a failure or a signal leaves."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_recipe import ROOT, STAGES, Chain, store_contents, write_recipe
from tiny_models import quickstart_tokenizer

from checkpoint_store import CheckpointStore
from pipeline.plan import Selection
from pipeline.recipe import load_recipe
from pipeline.runner import as_json, run_pipeline
from stages.errors import ConfigError


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def run(chain: Chain, root: Path, *overrides: str, **selection: Any) -> dict[str, Any]:
    return run_pipeline(load_recipe(chain.path, overrides), root, Selection(**selection))


def ran(summary: dict[str, Any]) -> list[str]:
    return [stage for stage, row in summary["stages"].items() if not row["skipped"]]


def test_the_summary_holds_every_stage_the_comparison_and_the_reward_models_accuracy(chain: Chain) -> None:
    summary = json.loads((chain.root / "pipelines" / "small" / "summary.json").read_text())
    assert summary == chain.summary
    assert list(summary["stages"]) == list(STAGES)
    for stage, row in summary["stages"].items():
        assert row.keys() == {"checkpoint", "key", "seconds", "skipped"}
        assert row["checkpoint"] == f"small/{stage}" and not row["skipped"] and row["seconds"] >= 0
    for model in ("sft", "ppo"):
        numbers = summary["evaluation"][model]
        assert {"gold_mean", "correctness_mean", "style_mean", "reward_mean", "length_mean", "kl"} <= numbers.keys()
        assert 0 <= numbers["eos_rate"] <= 1 <= numbers["length_mean"] <= 12
    assert summary["evaluation"]["sft"]["kl"] == 0
    ppo = summary["evaluation"]["ppo"]
    assert 0 <= ppo["win_rate_low"] <= ppo["win_rate"] <= ppo["win_rate_high"] <= 1
    assert summary["decided_by"] == "judge"
    assert 0 <= summary["reward_model"]["pair_accuracy"] <= 1 and summary["reward_model"]["n"] > 0


def test_every_stage_leaves_its_record_and_no_second_copy_of_its_output(chain: Chain) -> None:
    for row in chain.summary["stages"].values():
        run_directory = chain.root / "runs" / row["key"]
        assert not (run_directory / "output").exists() and not (run_directory / "trainer").exists()
        assert (run_directory / "metrics.jsonl").exists()
    lines = (chain.root / "runs" / chain.summary["stages"]["ppo"]["key"] / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2]
    assert {"objective/score", "objective/kl", "monitor/gold", "policy/pretraining_loss"} <= records[0].keys()


def test_what_is_published_opens_with_transformers_alone(chain: Chain) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ("sft", "ppo"):
        AutoModelForCausalLM.from_pretrained(chain.checkpoint(stage))
        assert AutoTokenizer.from_pretrained(chain.checkpoint(stage)).chat_template
    assert AutoModelForSequenceClassification.from_pretrained(chain.checkpoint("reward_model")).num_labels == 1


def test_a_second_run_skips_everything_at_once(chain: Chain, copy_of_chain: Path) -> None:
    before, started = store_contents(copy_of_chain), time.monotonic()
    summary = run(chain, copy_of_chain)
    assert time.monotonic() - started < 4  # a busy machine needs room
    assert ran(summary) == []
    assert summary["evaluation"] == chain.summary["evaluation"]
    assert store_contents(copy_of_chain) == before


def test_a_changed_ppo_setting_redoes_ppo_and_evaluation_alone(chain: Chain, copy_of_chain: Path) -> None:
    summary = run(chain, copy_of_chain, "--ppo.kl_coef=0.5")
    assert ran(summary) == ["ppo", "evaluate"]
    store = CheckpointStore(copy_of_chain / "store")
    assert store.resolve("small/ppo") == summary["stages"]["ppo"]["key"] != chain.summary["stages"]["ppo"]["key"]
    assert len(store.keys()) == len(STAGES) + 2  # the earlier ones stay


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"first": "ppo"}, []),
        ({"first": "ppo", "force": True}, ["ppo", "evaluate"]),
        ({"only": "reward_model", "force": True}, ["reward_model"]),
    ],
)
def test_from_only_and_force_choose_the_stages(
    chain: Chain, copy_of_chain: Path, selection: dict[str, Any], expected: list[str]
) -> None:
    assert ran(run(chain, copy_of_chain, **selection)) == expected


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(chain: Chain, copy_of_chain: Path) -> None:
    def digests(store: CheckpointStore, summary: dict[str, Any]) -> dict[str, dict[str, str]]:
        manifests = {stage: store.manifest(row["key"]) for stage, row in summary["stages"].items()}
        return {stage: {file.path: file.sha256 for file in manifest.files} for stage, manifest in manifests.items()}

    store = CheckpointStore(copy_of_chain / "store")
    before = digests(store, chain.summary)
    assert digests(store, run(chain, copy_of_chain, force=True)) == before
    other = digests(store, run(chain, copy_of_chain, "--seed=1", only="sft"))
    assert other["sft"]["model.safetensors"] != before["sft"]["model.safetensors"]


def test_what_a_stage_warns_about_is_kept_and_repeated_when_it_is_skipped(
    chain: Chain, copy_of_chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stages.evaluate.stage

    before = stages.evaluate.stage.run

    def warned(config: Any, job: Any) -> Any:
        job.tracker.warn("few prompts")
        return before(config, job)

    with monkeypatch.context() as patch:
        patch.setattr(stages.evaluate.stage, "run", warned)
        first = run(chain, copy_of_chain, only="evaluate", force=True)
    assert "few prompts" in first["warnings"]["evaluate"]
    again = run(chain, copy_of_chain)
    assert again["warnings"]["evaluate"] == first["warnings"]["evaluate"] and ran(again) == []
    assert json.loads((copy_of_chain / "pipelines" / "small" / "summary.json").read_text()) == again
    printed = capsys.readouterr().out
    assert "  evaluate: few prompts" in printed[printed.rindex("Warnings:") :]


def test_a_quiet_run_prints_no_tables(chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    summary = run_pipeline(load_recipe(chain.path), copy_of_chain, quiet=True)
    assert summary["evaluation"] == chain.summary["evaluation"] and capsys.readouterr().out == ""


def test_numbers_that_are_not_finite_do_not_stop_a_checkpoint_from_being_published() -> None:
    values = {"a": [math.nan, 1.5], "b": {"c": -math.inf}, "n": 3}
    assert as_json(values) == {"a": ["nan", 1.5], "b": {"c": "-inf"}, "n": 3}


def test_an_error_in_a_stage_names_its_run_directory(
    chain: Chain, copy_of_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stages.evaluate.stage

    def fail(*_: Any) -> None:
        raise KeyError("loss")

    monkeypatch.setattr(stages.evaluate.stage, "run", fail)
    key = chain.summary["stages"]["evaluate"]["key"]
    with pytest.raises(KeyError) as caught:
        run(chain, copy_of_chain, only="evaluate", force=True)
    assert caught.value.__notes__ == [f"stage evaluate, run directory {copy_of_chain / 'runs' / key}"]


def test_a_stage_alone_needs_its_parents(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ppo needs the sft checkpoint.*triptych sft --config RECIPE"):
        run(chain, tmp_path / "empty", only="ppo")
    assert store_contents(tmp_path / "empty") == []


def test_a_failing_stage_stops_the_chain_and_the_next_call_goes_on_from_there(
    chain: Chain, copy_of_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stages.reward_model.stage

    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is full")

    store = CheckpointStore(copy_of_chain / "store")
    change = "--comparisons.label_noise=0.2"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="disk is full"):
        patch.setattr(stages.reward_model.stage, "judge_pairs", fail)
        run(chain, copy_of_chain, change)
    assert len(store.keys()) == len(STAGES) + 1  # the new comparisons stay
    assert not [name for name in store_contents(copy_of_chain) if "attempt" in name]
    assert ran(run(chain, copy_of_chain, change)) == ["reward_model", "ppo", "evaluate"]


def test_one_stage_runs_alone_from_the_command_line_given_the_earlier_ones(chain: Chain, copy_of_chain: Path) -> None:
    from pipeline.__main__ import main

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["ppo", "--config", str(chain.path), "--root", str(copy_of_chain), "--ppo.kl_coef=0.25"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    manifest = CheckpointStore(copy_of_chain / "store").manifest(
        CheckpointStore(copy_of_chain / "store").resolve("small/ppo")
    )
    assert manifest.config["kl_coef"] == 0.25
    assert manifest.parents["sft"] == chain.summary["stages"]["sft"]["key"]


def test_people_s_comparisons_from_a_file_need_no_comparisons_step(chain: Chain, copy_of_chain: Path) -> None:
    data = copy_of_chain.parent / "pairs.jsonl"
    rows = [{"prompt": f"sort these words : fox {i}", "chosen": "fox .", "rejected": "dog ."} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_recipe(
        copy_of_chain.parent / "people.yaml",
        chain.recipe,
        comparisons=...,
        reward_model__data=str(data),
        reward_model__normalise_on="demonstrations",
        reward_model__held_out=0.3,
    )
    summary = run_pipeline(load_recipe(path), copy_of_chain)
    assert ran(summary) == ["reward_model", "ppo", "evaluate"]
    assert 0 < summary["reward_model"]["n"] < 20


def test_sigterm_in_the_middle_of_a_stage_leaves_nothing_in_the_store(chain: Chain, copy_of_chain: Path) -> None:
    before = store_contents(copy_of_chain)
    finished = {path.name for path in (copy_of_chain / "runs").iterdir()}
    command = [sys.executable, "-m", "pipeline", "run", str(chain.path), "--root", str(copy_of_chain)]
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--ppo.iterations=100000"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while not any(
            path.parent.name not in finished and path.stat().st_size
            for path in copy_of_chain.glob("runs/*/metrics.jsonl")
        ):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
    assert store_contents(copy_of_chain) == before


def test_what_the_check_before_the_first_stage_warns_of_is_repeated_at_the_end(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(chain.base, tmp_path / "base")
    quickstart_tokenizer().save_pretrained(base)  # with its template
    words = ["--sft.base_model", str(base), "--sft.template", "plain"]
    summary = run(chain, tmp_path / "out", *words, only="sft")
    [line] = summary["warnings"]["before the first stage"]
    assert line.startswith("sft.template 'plain' replaces the chat template of")
    printed = capsys.readouterr().out
    assert "  before the first stage: sft.template 'plain' replaces" in printed[printed.rindex("Warnings:") :]
    assert "warnings" not in run(chain, tmp_path / "out", *words, only="sft")  # nothing was to be checked
