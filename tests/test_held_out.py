from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipe import WORLD, small_recipe, write_recipe

from checkpoint_store import CheckpointStore
from data_schema import DataError, Demonstration, Document, HeldOutTasks, Prompt, Source, load
from data_schema.held_out import overlap
from pipeline.plan import Selection, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from stages.errors import ConfigError

RTE = HeldOutTasks({"task": ["rte", "cb"]})
DROP_RTE = HeldOutTasks({"task": ["rte", "cb"]}, on_row="drop")


def written(path: Path, *metas: dict[str, Any]) -> str:
    path.write_text(
        "".join(json.dumps({"prompt": f"{i}?", "completion": "yes", **m}) + "\n" for i, m in enumerate(metas))
    )
    return str(path)


def test_a_held_out_row_stops_the_load_naming_row_task_and_cure(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"task": "boolq"}, {"task": "rte"})
    with pytest.raises(DataError) as caught:
        load(Source(path, held_out_tasks=RTE), Demonstration)
    assert str(caught.value) == (
        f"{path}: row 'a:2' has task 'rte', which held_out_tasks excludes from training; remove it from the data, or"
        " set held_out_tasks.on_row: drop"
    )


def test_held_out_rows_can_be_dropped_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"task": "rte"}, {"task": "boolq"}, {"task": "cb"}, {"task": "cb"}, {})
    records = load(Source(path, held_out_tasks=DROP_RTE), Demonstration)
    assert [record.meta.get("task") for record in records] == ["boolq", None]
    assert records.dropped == {"held-out task rte": 1, "held-out task cb": 2}
    with pytest.raises(DataError, match="no demonstrations left: all were dropped"):
        load(Source(written(tmp_path / "b.jsonl", {"task": "cb"}), held_out_tasks=DROP_RTE), Demonstration)


def test_one_value_of_a_list_is_enough_and_numbers_count_as_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"clusters": ["qa", "nli"]}, {"clusters": ["qa"]}, {"clusters": 7})
    held_out = HeldOutTasks({"clusters": ["nli", "7"]}, on_row="drop")
    records = load(Source(path, held_out_tasks=held_out), Demonstration)
    assert [record.meta["clusters"] for record in records] == [["qa"]]


def test_a_records_own_group_can_be_held_out_and_every_kind_of_record(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"id": f"t{i}", "source": "web", "text": "words", "group": f"site{i}"} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = HeldOutTasks({"group": ["site1"]}, on_row="drop")
    assert [r.group for r in load(Source(str(path), held_out_tasks=held_out), Document)] == ["site0"]
    source = Source(f"{WORLD}:prompts", limit=200, held_out_tasks=HeldOutTasks({"kind": ["sort"]}, on_row="drop"))
    kinds = {record.meta["kind"] for record in load(source, Prompt)}
    assert "sort" not in kinds and len(kinds) > 5


def test_rows_that_do_not_tell_their_task_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(load(Source(written(tmp_path / "a.jsonl", {}, {}), held_out_tasks=RTE), Demonstration)) == 2
    assert "no row has task, so held-out tasks cannot be detected" in caplog.text


def test_what_is_held_out_is_part_of_a_sources_fingerprint(tmp_path: Path) -> None:
    from data_schema import fingerprint

    path = written(tmp_path / "a.jsonl", {})
    assert fingerprint(Source(path)) != fingerprint(Source(path, held_out_tasks=DROP_RTE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "held_out_tasks is empty"), ({"sources": ["a"], "on_row": "skip"}, "on_row must be error or drop")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HeldOutTasks(**settings)


def test_paths_overlap_when_they_share_a_file_or_a_part_of_a_hub_data_set(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.jsonl", {}), written(tmp_path / "b.jsonl", {})
    assert overlap(one, str(tmp_path / ".." / tmp_path.name / "a.jsonl")) and not overlap(one, two)
    assert overlap("owner/set", "owner/set:part") and not overlap("owner/set:a", "owner/set:b")
    assert not overlap("owner/set", one)
    assert overlap(f"{WORLD}:prompts", f"{WORLD}:prompts") and not overlap(f"{WORLD}:prompts", f"{WORLD}:documents")


# ---- in a recipe


def test_every_training_stage_gets_what_is_held_out_and_evaluation_does_not(small_base: Path, tmp_path: Path) -> None:
    held_out = {"meta": {"kind": ["sort"]}, "on_row": "drop"}
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), held_out_tasks=held_out)
    plans = {plan.stage: plan.config for plan in plan_pipeline(load_recipe(path), CheckpointStore(tmp_path / "store"))}
    expected = HeldOutTasks({"kind": ["sort"]}, on_row="drop")
    trained = [plans["sft"].data, plans["comparisons"].prompts, plans["reward_model"].demonstrations]
    trained += [plans["ppo"].prompts, plans["ppo"].pretraining_data]
    assert all(source.held_out_tasks == expected for sources in trained for source in sources)
    assert all(source.held_out_tasks is None for source in plans["evaluate"].prompts)


def test_a_stage_that_would_read_a_held_out_task_stops(small_base: Path, tmp_path: Path) -> None:
    held_out = {"meta": {"kind": ["sort"]}}
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), held_out_tasks=held_out)
    with pytest.raises(DataError, match=r"quickstart.data:demonstrations: row 'quickstart-train-\d+' has kind 'sort'"):
        run_pipeline(load_recipe(path), tmp_path / "out", Selection(only="sft"))
    assert not list((tmp_path / "out" / "store").glob("checkpoints/*"))


@pytest.mark.parametrize("setting", ["sft__data", "ppo__prompts"])
def test_a_held_out_source_is_refused_before_anything_runs(small_base: Path, tmp_path: Path, setting: str) -> None:
    data = written(tmp_path / "secret.jsonl", {}, {})
    recipe = small_recipe(small_base)
    path = write_recipe(tmp_path / "r.yaml", recipe, held_out_tasks={"sources": [data]}, **{setting: [data]})
    with pytest.raises(
        ConfigError, match=rf"{setting.replace('__', '.')} reads '.*secret\.jsonl', which held_out_tasks"
    ):
        plan_pipeline(load_recipe(path), CheckpointStore(tmp_path / "store"))
    path = write_recipe(tmp_path / "r.yaml", recipe, held_out_tasks={"sources": [data]}, evaluate__prompts=[data])
    assert plan_pipeline(load_recipe(path), CheckpointStore(tmp_path / "store"))


def test_a_local_copy_stands_for_the_held_out_data_set_too(small_base: Path, tmp_path: Path) -> None:
    copy = written(tmp_path / "copy.jsonl", {})
    held_out = {"sources": ["owner/set:part"]}
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), held_out_tasks=held_out, sft__data="owner/set")
    recipe = load_recipe(path, copies={"owner/set": copy})
    assert recipe.held_out_tasks is not None
    assert recipe.held_out_tasks.sources == [copy] == [source.path for source in recipe.sft.data]


def test_without_it_no_source_is_changed(small_base: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base))
    recipe = load_recipe(path)
    plans = {plan.stage: plan.config for plan in plan_pipeline(recipe, CheckpointStore(tmp_path / "store"))}
    assert plans["sft"] == recipe.sft and plans["ppo"] == recipe.ppo
