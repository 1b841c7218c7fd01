"""A recipe small enough for tests: a random Llama of two layers in the quickstart's world, a few steps a stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tiny_models import quickstart_tokenizer, tiny_llama

ROOT = Path(__file__).parent.parent
WORLD = "python:data_schema.quickstart.data"
JUDGE = "data_schema.quickstart.world:judge"
STAGES = ("sft", "comparisons", "reward_model", "ppo", "evaluate")


def make_small_base(directory: Path) -> Path:
    """A random Llama, 2 layers of width 32; its small weights let a few steps of SFT teach it to end its answers."""
    from policy.language_model import save_checkpoint

    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer, initializer_range=0.02, tie_word_embeddings=True), tokenizer, directory)
    return directory


def small_recipe(base: Path) -> dict[str, Any]:
    """All five stages in seconds; enough SFT that about half of the answers end by themselves."""
    constant = {"schedule": "constant"}
    sampling = {"max_new_tokens": 12, "batch_size": 64}
    prompts = f"{WORLD}:prompts"
    return {
        "name": "small",
        "tracking": {"wandb": "disabled"},
        "sft": {
            "base_model": str(base),
            "template": "quickstart",
            "data": {"path": f"{WORLD}:demonstrations", "limit": 660},
            "batch_size": 16,
            "held_out": 0.03,
            "max_length": 64,
            "device": "cpu",
            "optimizer": {"learning_rate": 1e-2},
        },
        "comparisons": {
            "prompts": {"path": prompts, "limit": 56},
            "held_out_prompts": 16,
            "labeler": JUDGE,
            "sampling": sampling,
            "device": "cpu",
        },
        "reward_model": {
            "batch_prompts": 8,
            "max_length": 64,
            "normalise_on": "policy_samples",
            "device": "cpu",
            "optimizer": {"learning_rate": 1e-3},
        },
        "ppo": {
            "prompts": {"path": prompts, "limit": 40},
            "iterations": 2,
            "rollout_batch": 16,
            "minibatches": 2,
            "sampling": sampling,
            "device": "cpu",
            "optimizer": {"learning_rate": 1e-3, "eps": 1e-5, **constant},
            "value_optimizer": {"learning_rate": 1e-3, "eps": 1e-5, **constant},
            "pretraining_data": {"path": f"{WORLD}:documents", "limit": 100},
            "pretraining_coef": 0.1,
            "pretraining_rows": 4,
            "pretraining_length": 16,
            "monitor": JUDGE,
        },
        "evaluate": {
            "prompts": {"path": prompts, "split": "test", "limit": 24},
            "n_prompts": 16,
            "judge": JUDGE,
            "sampling": sampling,
            "device": "cpu",
        },
    }


def write_recipe(path: Path, recipe: Mapping[str, Any], **changes: Any) -> Path:
    """The recipe as YAML, with dotted changes written as ppo__kl_coef=0.1; a change to ... leaves the key out."""
    rows = json.loads(json.dumps(recipe))
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        section = rows
        for name in sections:
            section = section.setdefault(name, {})
        if value is ...:
            section.pop(key, None)
        else:
            section[key] = value
    path.write_text(yaml.safe_dump(rows))
    return path


class Chain(NamedTuple):
    """A finished pipeline of the small recipe. Do not change what lies there: copy `root` first."""

    base: Path
    recipe: dict[str, Any]
    path: Path  # of the recipe
    root: Path
    summary: dict[str, Any]

    def checkpoint(self, stage: str) -> Path:
        return self.root / "store" / "checkpoints" / self.summary["stages"][stage]["key"]


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_base(tmp_path_factory.mktemp("models") / "small_base")


@pytest.fixture(scope="session")
def chain(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    from pipeline.recipe import load_recipe
    from pipeline.runner import run_pipeline

    folder = tmp_path_factory.mktemp("chain")
    recipe = small_recipe(small_base)
    path = write_recipe(folder / "small.yaml", recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        summary = run_pipeline(load_recipe(path), folder / "out")
    return Chain(small_base, recipe, path, folder / "out", summary)


def store_contents(root: Path) -> list[str]:
    """Everything in the store, half-written attempts included."""
    store = root / "store"
    return sorted(str(path.relative_to(store)) for path in store.rglob("*")) if store.exists() else []


@pytest.fixture
def copy_of_chain(chain: Chain, tmp_path: Path) -> Path:
    """A root with everything published, to be changed at will."""
    return Path(shutil.copytree(chain.root, tmp_path / "copy"))


class ListTracker:
    """Holds what a stage logs."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.records.append({"step": step, **metrics})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        assert all(len(row) == len(columns) for row in rows)


def job(directory: Path, parents: Mapping[str, Path] | None = None, seed: int = 0) -> Any:
    """What the runner would give a stage."""
    from stages.job import Job

    return Job(directory, parents or {}, ListTracker(), seed)
