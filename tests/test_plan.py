from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import ROOT, STAGES, WORLD, Chain, make_small_base, small_recipe, write_recipe

from checkpoint_store import CheckpointStore
from data_schema import DataError
from pipeline.inputs import named_modules
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
    assert kl["ppo"] == "ppo.kl_coef 0.02 -> 0.5"
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
        "import sys; from checkpoint_store import CheckpointStore; from pipeline.plan import plan_pipeline; "
        f"from pipeline.recipe import load_recipe; plan_pipeline(load_recipe({str(path)!r}), CheckpointStore('out')); "
        "print(*sorted({'torch', 'transformers', 'datasets', 'wandb'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.fixture
def project(tmp_path: Path, small_base: Path) -> Path:
    """A folder with a model, data and a recipe that names both by relative paths."""
    folder = tmp_path / "project"
    shutil.copytree(small_base, folder / "models" / "tiny")
    for name in ("demonstrations", "prompts", "test"):
        (folder / f"{name}.jsonl").write_text(f'{{"prompt": "sort : b a {name}", "completion": "a b ."}}\n')
    write_recipe(
        folder / "small.yaml",
        small_recipe(Path("models/tiny")),
        sft__data="demonstrations.jsonl",
        comparisons__prompts="prompts.jsonl",
        ppo__prompts="prompts.jsonl",
        evaluate__prompts="test.jsonl",
    )
    return folder


def keys(path: Path, *overrides: str) -> dict[str, str]:
    return {stage: plan.key for stage, plan in plans(path, *overrides).items()}


def test_keys_do_not_depend_on_how_a_path_is_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    first = keys(Path("small.yaml"))
    for model in ("./models/tiny", "models/tiny/", "models/../models/tiny", str(project / "models" / "tiny")):
        assert keys(Path("small.yaml"), "--sft.base_model", model) == first
    for data in ("./demonstrations.jsonl", str(project / "demonstrations.jsonl")):
        assert keys(Path("small.yaml"), "--sft.data", data) == first
    assert keys(Path("small.yaml"), "--sft.data", "test.jsonl") != first


def test_keys_do_not_depend_on_the_folder_a_command_is_called_from(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    first = keys(Path("small.yaml"))
    monkeypatch.chdir(tmp_path)
    assert keys(Path("project/small.yaml")) == first
    moved = project.rename(tmp_path / "moved")
    assert keys(moved / "small.yaml") == first
    child = moved / "variants" / "child.yaml"
    child.parent.mkdir()
    child.write_text("extends: ../small.yaml\n")  # paths belong to the file that names them
    assert keys(child) == first


def test_a_recipe_in_a_folder_of_recipes_finds_what_lies_beside_that_folder(project: Path, tmp_path: Path) -> None:
    first = keys(project / "small.yaml")
    (project / "recipes").mkdir()
    assert keys((project / "small.yaml").rename(project / "recipes" / "small.yaml")) == first


def test_models_are_found_in_the_data_folder_too(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keys(project / "small.yaml")
    elsewhere = shutil.copy(project / "small.yaml", tmp_path / "elsewhere.yaml")
    monkeypatch.setenv("TRIPTYCH_DATA", str(project))
    assert keys(Path(elsewhere)) == first


@pytest.mark.parametrize("model", ["models/tiny", "./models/tiny", "models/a/b", "~/nowhere", "tiny", "models/tiny "])
def test_a_base_model_that_is_nowhere_is_named_with_the_places(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    shutil.rmtree(project / "models")
    recipe = project / "small.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"sft\.base_model '.*' is not a directory in .*, next to the recipe") as told:
        plans(recipe, "--sft.base_model", model)
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://huggingface.co/owner/name", "an address, which is not read; download it"),
        ("s3://bucket/x", "an address, which is not read"),
        ("file:///models/x", "an address; write the path alone: /models/x"),
        ("$HOME/x", "environment variables are not replaced in a recipe"),
        ("${MODELS}/x", "environment variables are not replaced in a recipe"),
    ],
)
def test_a_path_of_a_kind_that_is_not_read_says_so(project: Path, path: str, words: str) -> None:
    for setting in ("--sft.base_model", "--sft.data"):
        with pytest.raises((ConfigError, DataError), match=rf"^{setting[2:]}.*: {words}") as told:
            plans(project / "small.yaml", setting, path)
        assert path in str(told.value)


def test_a_checkpoint_of_the_store_as_base_model_is_told_where_its_folder_is(project: Path) -> None:
    with pytest.raises(ConfigError, match="give its folder, which 'triptych show small/sft' prints"):
        plans(project / "small.yaml", "--sft.base_model", "small/sft")


def test_a_hub_model_is_known_by_its_revision(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    reference = tmp_path / "hub" / "models--someone--tiny" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("0123abcd")
    sft = plans(project / "small.yaml", "--sft.base_model=someone/tiny")["sft"]
    assert sft.data["base_model"]["fingerprint"] == "someone/tiny@0123abcd"


def test_what_a_download_leaves_beside_a_model_does_not_count(project: Path) -> None:
    first = keys(project / "small.yaml")
    note = project / "models" / "tiny" / ".cache" / "huggingface" / "download" / "config.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("a time")
    assert keys(project / "small.yaml") == first


def test_a_checkpoint_named_by_its_folder_is_that_checkpoint(chain: Chain) -> None:
    by_folder = plans(chain.path, f"--ppo.sft={chain.checkpoint('sft')}/", root=chain.root)["ppo"]
    assert by_folder.parents["sft"] == chain.summary["stages"]["sft"]["key"] and not by_folder.outside
    assert by_folder.exists  # and it is what the recipe reads anyway


def test_the_reason_is_written_as_in_a_recipe(chain: Chain) -> None:
    def reason(stage: str, *overrides: str) -> str:
        return plans(chain.path, *overrides, root=chain.root)[stage].reason

    assert reason("ppo", "--ppo.lora={rank: 4}") == "ppo.lora null -> {rank: 4, alpha: 32.0, targets: all-linear}"
    assert reason("ppo", "--ppo.rewards=[{model: null}, {length_penalty: 3}]").startswith(
        "ppo.rewards 1 entry -> 2 ent"
    )
    assert reason("ppo", "--ppo.optimizer.betas=[0.5, 0.9]") == "ppo.optimizer.betas [0.9, 0.95] -> [0.5, 0.9]"
    assert reason("ppo", "--ppo.whiten_rewards=true") == "ppo.whiten_rewards false -> true"


SIDE_EFFECT = """
import math as mathematics
from pathlib import Path

Path({mark!r}).touch()

def judge(meta, response, finished):
    return {{"gold": 1.0}}

try:
    other = judge
except NameError:
    pass
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the module `watched.code` or its package is imported."""
    mark = tmp_path / "imported"
    package = tmp_path / "modules" / "watched"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')")
    (package / "code.py").write_text(SIDE_EFFECT.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(package.parent))
    return mark


CODE = ("comparisons.labeler", "ppo.monitor", "ppo.sampling.engine", "evaluate.judge")


@pytest.mark.parametrize("setting", [*CODE, "ppo.rewards", "sft.data"])
def test_planning_runs_no_code_that_a_recipe_names(path: Path, imported: Path, setting: str) -> None:
    def planned(function: str) -> None:
        named = f"watched.code:{function}"
        plans(
            path,
            f"--{setting}="
            + {"ppo.rewards": f"[{{function: {named}}}]", "sft.data": f"python:{named}"}.get(setting, named),
        )

    for function in ("judge", "other", "mathematics"):
        planned(function)
    with pytest.raises(ConfigError, match=rf"{setting}.*does not define 'jugde'. Did you mean 'judge'"):
        planned("jugde")
    assert not imported.exists()


def test_a_run_can_say_which_modules_it_will_import(path: Path, imported: Path) -> None:
    configs = [plan.config for plan in plans(path, "--ppo.monitor=watched.code:judge").values()]
    assert named_modules(configs) == [WORLD.removeprefix("python:"), "data_schema.quickstart.world", "watched.code"]
    assert named_modules(configs[:1]) == [WORLD.removeprefix("python:")]


def test_a_recipe_without_sft_names_the_models_it_starts_from(chain: Chain) -> None:
    path = write_recipe(chain.path.with_name("later.yaml"), chain.recipe, sft=..., comparisons=..., reward_model=...)
    with pytest.raises(ConfigError, match=r"the recipe has no section sft; add it, or name .* in ppo\.sft"):
        load_recipe(path, ["--ppo.reward_model=small/reward_model"])
    named = ["--ppo.sft=small/sft", "--ppo.reward_model=small/reward_model", "--name=small"]
    found = plans(path, *named, root=chain.root)
    assert list(found) == ["ppo", "evaluate"]
    # The same checkpoints as those of the whole recipe, so nothing runs again.
    assert {stage: plan.key for stage, plan in found.items()} == {
        stage: chain.summary["stages"][stage]["key"] for stage in found
    }
    from_directory = plans(path, f"--ppo.sft={chain.base}/", *named[1:], root=chain.root)["evaluate"]
    assert from_directory.outside == {"sft": chain.base}
