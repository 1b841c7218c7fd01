from __future__ import annotations

import json
import shutil
import time
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from small_recipe import WORLD, small_recipe, store_contents, write_recipe
from tiny_models import quickstart_tokenizer

from checkpoint_store import CheckpointStore
from data_schema import DataError, Demonstration, Document, Source
from pipeline.configs import Recipe
from pipeline.gate import READS, ROWS, check_stages, first_rows
from pipeline.plan import STAGES, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.errors import ModelError
from stages.errors import ConfigError

GOOD = {"prompt": "sort these words : fox dog", "completion": "dog fox ."}
NO_SYSTEM = {"messages": [{"role": r, "content": "fox"} for r in ("system", "user", "assistant")]}


def check(tmp_path: Path, base: Path, *, only: str | None = None, **changes: Any) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", small_recipe(base), **changes))
    store = CheckpointStore(tmp_path / "out" / "store")
    plans = plan_pipeline(recipe, store)
    check_stages(plans, {only} if only else {plan.stage for plan in plans}, store, recipe.seed)


def base_with(tokenizer: Any, small_base: Path, directory: Path) -> Path:
    """The small model's directory with another tokenizer."""
    shutil.copytree(small_base, directory)
    tokenizer.save_pretrained(directory)
    return directory


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_sound_recipe_passes_in_a_moment(tmp_path: Path, small_base: Path) -> None:
    check(tmp_path, small_base)  # imports
    started = time.process_time()
    check(tmp_path, small_base)
    assert time.process_time() - started < 0.3 * len(STAGES)


def test_every_setting_that_names_data_is_looked_at() -> None:
    for stage in STAGES:
        [config] = [kind for kind in get_args(get_type_hints(Recipe)[stage]) or [get_type_hints(Recipe)[stage]]
                    if is_dataclass(kind)]  # fmt: skip
        named = {name for name, hint in get_type_hints(config).items() if hint == list[Source]}
        assert named == READS[stage].keys()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pad_token": "<eos>"}, "pads with its EOS"),
        ({"pad_token": None}, "no padding token"),
        ({"chat_template": "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"}, "prompt"),
    ],
    ids=["pad is eos", "no pad", "the template keeps no prefix"],
)
def test_a_broken_tokenizer_stops_the_run_before_its_first_stage(
    tmp_path: Path, small_base: Path, change: dict[str, Any], part: str
) -> None:
    tokenizer: Any = quickstart_tokenizer()
    for name, value in change.items():
        setattr(tokenizer, name, value)
    base = base_with(tokenizer, small_base, tmp_path / "base")
    template = "tokenizer" if "chat_template" in change else "quickstart"
    path = write_recipe(tmp_path / "recipe.yaml", small_recipe(base), sft__template=template)
    with pytest.raises(ConfigError, match=f"^sft: .*{part}"):
        run_pipeline(load_recipe(path), tmp_path / "out")
    assert store_contents(tmp_path / "out") == [] and not (tmp_path / "out" / "runs").exists()


def test_a_pad_token_of_the_recipe_mends_the_tokenizer(tmp_path: Path, small_base: Path) -> None:
    tokenizer: Any = quickstart_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    check(tmp_path, base_with(tokenizer, small_base, tmp_path / "base"), sft__pad_token="<|pad|>")


@pytest.mark.parametrize(
    ("setting", "rows", "error", "part"),
    [
        ("sft__data", [GOOD, {**GOOD, "completion": ""}], DataError, r"rows.jsonl:2: 'completion' is empty"),
        ("sft__data", [GOOD, NO_SYSTEM], DataError, r"rows.jsonl:2"),
        ("sft__data", [NO_SYSTEM], ConfigError, r"^sft.data \(.*rows.jsonl\): 1 of 1 rows .* no system messages"),
        ("ppo__prompts", [{"colour": "blue"}], DataError, "no known format"),
        ("evaluate__prompts", [NO_SYSTEM], ConfigError, r"^evaluate.prompts \(.* no system messages"),
    ],
)
def test_rows_that_a_later_stage_cannot_use_stop_the_run_before_its_first_stage(
    tmp_path: Path, small_base: Path, setting: str, rows: list[Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        check(tmp_path, small_base, **{setting: jsonl(tmp_path / "rows.jsonl", *rows)})


def test_only_the_stages_that_are_to_run_are_looked_at(tmp_path: Path, small_base: Path) -> None:
    bad = jsonl(tmp_path / "rows.jsonl", {"colour": "blue"})
    check(tmp_path, small_base, only="sft", ppo__prompts=bad)
    with pytest.raises(DataError, match="no known format"):
        check(tmp_path, small_base, only="ppo", ppo__prompts=bad)


def test_a_missing_checkpoint_is_left_to_the_runner_and_a_missing_model_is_told(
    tmp_path: Path, small_base: Path
) -> None:
    check(tmp_path, small_base, only="ppo")
    with pytest.raises(ModelError, match="nowhere"):
        check(tmp_path, Path("./nowhere"), only="sft")


def test_rows_that_are_all_dropped_at_the_start_hide_none_that_follow(tmp_path: Path) -> None:
    bad = {**GOOD, "completion": ""}
    path = jsonl(tmp_path / "rows.jsonl", *[bad] * (ROWS + 5), GOOD)
    assert len(first_rows(Source(path, on_bad_row="drop"), Demonstration, 0)) == 1


def test_no_more_rows_are_read_than_are_looked_at() -> None:
    assert len(first_rows(Source(f"{WORLD}:documents", limit=1000), Document, 0)) == ROWS
    assert len(first_rows(Source(f"{WORLD}:documents", limit=3), Document, 0)) == 3
    assert first_rows(Source("someone/something"), Document, 0) == []  # on the hub: nothing is fetched
