from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import ROOT, STAGES, WORLD, Chain, make_small_base, small_recipe, write_recipe

from checkpoint_store import CheckpointStore
from data_schema import DataError
from pipeline.plan import StagePlan, plan_pipeline
from pipeline.recipe import load_recipe
from stages.errors import ConfigError


@pytest.fixture(scope="module")
def path(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("plan") / "small.yaml", small_recipe(small_base))


def plans(path: Path, *overrides: str, root: Path | None = None) -> dict[str, StagePlan]:
    store = CheckpointStore((root or path.parent / "out") / "store")
    return {plan.stage: plan for plan in plan_pipeline(load_recipe(path, overrides), store)}


@functools.cache
def unchanged(path: Path) -> dict[str, StagePlan]:
    return plans(path)


def changed(path: Path, *overrides: str) -> list[str]:
    before, after = unchanged(path), plans(path, *overrides)
    return [stage for stage in before if before[stage].key != after[stage].key]


def test_a_plan_is_the_same_every_time(path: Path) -> None:
    assert plans(path) == plans(path)
    assert list(plans(path)) == list(STAGES)
    assert len({plan.key for plan in plans(path).values()}) == len(STAGES)


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("--sft.epochs=2", ["sft", "comparisons", "reward_model", "ppo", "evaluate"]),
        ("--seed=1", ["sft", "comparisons", "reward_model", "ppo", "evaluate"]),
        ("--comparisons.label_noise=0.2", ["comparisons", "reward_model", "ppo", "evaluate"]),
        ("--reward_model.batch_prompts=4", ["reward_model", "ppo", "evaluate"]),
        ("--ppo.kl_coef=0.5", ["ppo", "evaluate"]),
        ("--ppo.optimizer.learning_rate=0.5", ["ppo", "evaluate"]),
        ("--evaluate.n_prompts=8", ["evaluate"]),
        ("--sft.micro_batch_size=4", []),
        ("--reward_model.micro_batch_tokens=200", []),
        ("--ppo.micro_batch=2", []),
        ("--ppo.device=auto", []),
        ("--tracking.project=elsewhere", []),
        ("--name=other", []),
    ],
)
def test_a_change_redoes_its_stage_and_those_that_follow(path: Path, override: str, redone: list[str]) -> None:
    assert changed(path, override) == redone


def test_changed_data_redoes_the_stages_that_read_it(small_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    data.write_text('{"prompt": "sort : b a", "completion": "a b ."}\n')
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), sft__data=str(data))
    before = plans(path)
    data.write_text('{"prompt": "sort : b a", "completion": "b a ."}\n')
    after = plans(path)
    assert before["sft"].key != after["sft"].key
    assert before["ppo"].key != after["ppo"].key  # through its parents


def test_other_weights_of_the_base_model_redo_everything(tmp_path: Path) -> None:
    base = make_small_base(tmp_path / "base")
    path = write_recipe(tmp_path / "r.yaml", small_recipe(base))
    before = plans(path)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert all(before[stage].key != plan.key for stage, plan in plans(path).items())


def test_without_a_comparisons_step_the_reward_model_reads_its_data(small_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "comparisons.jsonl"
    data.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), comparisons=..., reward_model__data=str(data))
    found = plans(path)
    assert list(found) == ["sft", "reward_model", "ppo", "evaluate"]
    assert found["reward_model"].parents.keys() == {"sft"}
    assert "data" in found["reward_model"].data


def test_the_reward_model_takes_its_demonstrations_from_sft_where_none_are_named(path: Path) -> None:
    assert plans(path)["reward_model"].config.demonstrations == load_recipe(path).sft.data
    named = plans(path, "--reward_model.demonstrations", f"{WORLD}:demonstrations")
    assert named["reward_model"].config.demonstrations[0].limit is None


def test_the_reason_says_what_changed(chain: Chain) -> None:
    def reasons(*overrides: str) -> dict[str, str]:
        return {stage: plan.reason for stage, plan in plans(chain.path, *overrides, root=chain.root).items()}

    assert set(reasons().values()) == {"published"}
    kl = reasons("--ppo.kl_coef=0.5")
    assert kl["sft"] == kl["reward_model"] == "published"
    assert kl["ppo"] == "kl_coef 0.02 -> 0.5"
    assert kl["evaluate"] == "another ppo checkpoint"
    assert "optimizer.learning_rate 0.01 -> 0.02" in reasons("--sft.optimizer.learning_rate=0.02")["sft"]
    assert reasons("--seed=4")["sft"].startswith("seed 0 -> 4")
    assert "prompts" in reasons("--evaluate.prompts", f"{WORLD}:prompts")["evaluate"]
    assert reasons("--name=other")["sft"] == "published"
    assert reasons("--name=other", "--sft.epochs=2")["sft"] == "never run"


def test_a_stage_can_start_from_a_model_directory_or_a_name_in_the_store(chain: Chain) -> None:
    from_directory = plans(chain.path, f"--ppo.sft={chain.base}", root=chain.root)["ppo"]
    assert from_directory.outside == {"sft": chain.base} and "sft" not in from_directory.parents
    by_name = plans(chain.path, "--ppo.sft=small/sft", root=chain.root)["ppo"]
    assert by_name.parents["sft"] == chain.summary["stages"]["sft"]["key"]
    with pytest.raises(ConfigError, match=r"ppo\.sft is 'smal/sft'.*the store has small/"):
        plans(chain.path, "--ppo.sft=smal/sft", root=chain.root)


def test_data_that_are_not_there_are_found_before_anything_runs(path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        plans(path, "--ppo.prompts=nowhere.jsonl")


def test_planning_loads_no_torch(path: Path) -> None:
    code = (
        "import sys; from pipeline.__main__ import main; "
        f"code = main(['run', {str(path)!r}, '--dry-run', '--root', {str(path.parent)!r}]); "
        "print(code, *sorted({'torch', 'transformers', 'datasets', 'wandb'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0"
