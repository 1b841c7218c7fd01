from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_recipe import small_recipe, write_recipe

from checkpoint_store.names import check_name
from pipeline.configs import Recipe
from pipeline.recipe import as_yaml, load_recipe
from stages.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "small.yaml", small_recipe(Path("base")))


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_that_extends_another_changes_only_what_it_says(recipe: Path) -> None:
    child = recipe.with_name("child.yaml")
    child.write_text("extends: small.yaml\nname: child\nppo:\n  optimizer:\n    learning_rate: 0.5\n")
    parent, changed = load_recipe(recipe), load_recipe(child)
    assert changed.ppo.optimizer.learning_rate == 0.5
    assert changed.ppo.optimizer.eps == parent.ppo.optimizer.eps == 1e-5
    assert changed.ppo.prompts == parent.ppo.prompts
    assert (changed.sft, changed.reward_model, changed.evaluate) == (parent.sft, parent.reward_model, parent.evaluate)


def test_extending_goes_on_through_a_chain_of_files(recipe: Path) -> None:
    recipe.with_name("middle.yaml").write_text("extends: small.yaml\nseed: 5\n")
    last = recipe.with_name("last.yaml")
    last.write_text("extends: middle.yaml\nname: last\n")
    assert (load_recipe(last).name, load_recipe(last).seed) == ("last", 5)


@pytest.mark.parametrize("words", [["--ppo.kl_coef", "0.125"], ["--ppo.kl_coef=0.125"]])
def test_a_dotted_override_wins_over_the_file(recipe: Path, words: list[str]) -> None:
    changed = load_recipe(recipe, [*words, "--seed", "3"])
    assert (changed.ppo.kl_coef, changed.seed) == (0.125, 3)
    assert changed.ppo.iterations == load_recipe(recipe).ppo.iterations


def test_an_override_reaches_a_setting_of_a_nested_section(recipe: Path) -> None:
    assert load_recipe(recipe, ["--ppo.optimizer.learning_rate=0.25"]).ppo.optimizer.learning_rate == 0.25


def test_an_override_can_turn_a_setting_off(recipe: Path) -> None:
    assert load_recipe(recipe, ["--ppo.monitor", "null"]).ppo.monitor is None


def test_an_override_may_be_negative(recipe: Path) -> None:
    assert load_recipe(recipe, ["--ppo.score_without_eos", "-3"]).ppo.score_without_eos == -3


@pytest.mark.parametrize("words", [["stray"], ["--ppo.kl_coef"], ["--ppo.kl_coef", "--seed", "1"]])
def test_an_override_without_option_or_value_is_refused(recipe: Path, words: list[str]) -> None:
    assert words[0] in complaint(recipe, *words)


@pytest.mark.parametrize("words", [["--sft.data", "my.jsonl"], ["--sft.data=my.jsonl"]])
def test_a_bare_path_on_the_command_line_is_a_source_and_inherits_nothing(recipe: Path, words: list[str]) -> None:
    (source,) = load_recipe(recipe, words).sft.data
    assert (source.path, source.split, source.limit) == ("my.jsonl", "train", None)


@pytest.mark.parametrize(
    ("given", "paths"),
    [("a.jsonl", ["a.jsonl"]), (["a.jsonl", {"path": "b.jsonl"}], ["a.jsonl", "b.jsonl"]), ({"path": "c"}, ["c"])],
)
def test_a_source_in_a_file_is_a_path_a_mapping_or_a_list_of_them(tmp_path: Path, given: Any, paths: list[str]) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), evaluate__prompts=given)
    assert [source.path for source in load_recipe(path).evaluate.prompts] == paths


@pytest.mark.parametrize(
    ("key", "section", "meant"),
    [
        ("ppo__kl_coeff", "'ppo' has", "kl_coef"),
        ("sft__optimizer__learning_rat", "'sft.optimizer' has", "learning_rate"),
        ("comparisons__sampling__temperatur", "'comparisons.sampling' has", "temperature"),
        ("evalute", "a recipe has", "evaluate"),
    ],
)
def test_an_unknown_setting_in_a_file_is_named_with_the_one_that_was_meant(
    tmp_path: Path, key: str, section: str, meant: str
) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), **{key: 1})
    message = complaint(path)
    assert str(path) in message
    assert f"{section} no setting '{key.rpartition('__')[2]}'" in message
    assert f"Did you mean '{meant}'?" in message


@pytest.mark.parametrize("word", ["--ppo.kl_coeff=0.1", "--ppo.kl_coeff"])
def test_an_unknown_override_is_named_with_the_one_that_was_meant(recipe: Path, word: str) -> None:
    overrides = [word] if "=" in word else [word, "0.1"]
    assert "'ppo' has no setting 'kl_coeff'. Did you mean 'kl_coef'?" in complaint(recipe, *overrides)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--ppo.iterations=many", ["ppo.iterations is many; it must be a whole number"]),
        ("--ppo.optimizer.schedule=square", ["ppo.optimizer.schedule is square", "one of cosine, constant, linear"]),
        ("--sft.packing=perhaps", ["sft.packing is perhaps; it must be true or false"]),
        ("--ppo.kl_target=low", ["ppo.kl_target is low; it must be a number or null"]),
        ("--comparisons.answers_per_prompt=few", ["comparisons.answers_per_prompt is few; it must be a whole number"]),
    ],
)
def test_a_value_of_the_wrong_type_names_key_and_value(recipe: Path, override: str, parts: list[str]) -> None:
    message = complaint(recipe, override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--ppo.gamma=1.5", ["ppo.gamma is 1.5", "between 0 and 1"]),
        ("--ppo.kl_coef=-0.1", ["ppo.kl_coef is -0.1", "at least 0"]),
        ("--ppo.iterations=0", ["ppo.iterations is 0", "at least 1"]),
        ("--sft.held_out=0.95", ["sft.held_out is 0.95", "between 0 and 0.9"]),
        ("--comparisons.answers_per_prompt=1", ["comparisons.answers_per_prompt is 1", "between 2 and 9"]),
        ("--reward_model.normalise_rows=1", ["reward_model.normalise_rows is 1", "at least 2"]),
        ("--evaluate.sampling.temperature=0", [": evaluate.sampling.temperature is 0", "greater than 0"]),
        ("--ppo.lora.rank=0", [": ppo.lora.rank is 0", "at least 1"]),
        ("--seed=-1", [": seed is -1", "between 0 and 4294967295"]),
        ("--ppo.minibatches=3", ["ppo.rollout_batch is 16", "multiple of ppo.minibatches (3)"]),
        ("--ppo.pretraining_data=[]", ["pretraining_coef is set", "ppo.pretraining_data is empty; add plain text"]),
        ("--ppo.value_warmup=2", ["ppo.value_warmup is 2 of 2 iterations", "never train; lower it"]),
        ("--ppo.score_clip=0", ["ppo.score_clip is 0", "greater than 0"]),
        ("--ppo.entropy_coef=-1", ["ppo.entropy_coef is -1", "at least 0"]),
        ("--ppo.target_approx_kl=0", ["ppo.target_approx_kl is 0", "greater than 0"]),
        ("--ppo.kl_estimator=k4", ["ppo.kl_estimator is k4", "one of k1, k2, k3"]),
        ("--ppo.preset=instruct", ["ppo.preset is instruct", "one of instructgpt, tldr"]),
        ("--name=a/b", ["name is 'a/b'"]),
    ],
)
def test_a_value_out_of_range_names_key_value_and_bound(recipe: Path, override: str, parts: list[str]) -> None:
    message = complaint(recipe, override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", ["sft__base_model", "ppo__prompts", "name", "comparisons__labeler"])
def test_a_missing_setting_is_named(tmp_path: Path, key: str) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), **{key: ...})
    assert f"{key.replace('__', '.')} is required; add it" in complaint(path)


def test_without_comparisons_the_reward_model_must_name_data(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), comparisons=...)
    assert "reward_model.data is empty and there is no section comparisons" in complaint(path)
    assert load_recipe(path, ["--reward_model.data", "c.jsonl"]).comparisons is None


def test_a_printed_config_loads_again_to_the_same_recipe(recipe: Path) -> None:
    first = load_recipe(recipe, ["--ppo.lora.rank=4", "--ppo.kl_target=6", "--sft.data", "my.jsonl"])
    printed = recipe.with_name("printed.yaml")
    printed.write_text(as_yaml(first))
    assert load_recipe(printed) == first
    assert isinstance(first, Recipe)


def test_a_recipe_that_is_not_there_suggests_a_near_name(recipe: Path) -> None:
    assert f"did you mean {recipe}?" in complaint(recipe.with_name("smal.yaml"))
    assert "there are: small.yaml" in complaint(recipe.with_name("nothing-like-it.yaml"))
    (recipe.parent / "recipes").mkdir()
    inside = recipe.rename(recipe.parent / "recipes" / "small.yaml")
    assert f"did you mean {inside}?" in complaint(recipe.with_name("smal"))
    inside.unlink()
    assert "there are none here; check the path" in complaint(recipe)


def test_a_base_recipe_that_is_not_there_is_named(recipe: Path) -> None:
    child = recipe.with_name("child.yaml")
    child.write_text("extends: smalll.yaml\n")
    assert "no recipe" in complaint(child) and "small.yaml" in complaint(child)


def test_recipes_that_extend_each_other_are_refused(recipe: Path) -> None:
    one, two = recipe.with_name("one.yaml"), recipe.with_name("two.yaml")
    one.write_text("extends: two.yaml\n")
    two.write_text("extends: one.yaml\n")
    assert "extends" in complaint(one)


@pytest.mark.parametrize("text", ["name: [", "just words", ""])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "broken.yaml" in complaint(path)


def test_a_recipe_cannot_be_changed_after_it_is_built(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    with pytest.raises(AttributeError):
        loaded.ppo.kl_coef = 1.0


def test_numbers_in_exponent_form_without_a_point_are_numbers(recipe: Path) -> None:
    rows = yaml.safe_load(recipe.read_text())
    rows["ppo"]["optimizer"]["learning_rate"] = "3e-4"  # what YAML 1.1 makes of an unquoted 3e-4
    recipe.write_text(yaml.safe_dump(rows))
    assert load_recipe(recipe).ppo.optimizer.learning_rate == pytest.approx(3e-4)


def test_a_copy_on_disk_stands_in_for_a_data_set_and_its_folders(tmp_path: Path) -> None:
    rows = small_recipe(Path("base"))
    path = write_recipe(
        tmp_path / "r.yaml", rows, sft__data={"path": "owner/set:folder", "limit": 7}, ppo__prompts="owner/set"
    )
    recipe = load_recipe(path, copies={"owner/set": "copy.jsonl"})
    assert [(source.path, source.limit) for source in recipe.sft.data] == [("copy.jsonl", 7)]
    assert recipe.ppo.prompts[0].path == "copy.jsonl"
    assert recipe.evaluate.prompts == load_recipe(path).evaluate.prompts
    with pytest.raises(ConfigError, match="the recipe has no data source 'owner/sett'"):
        load_recipe(path, copies={"owner/sett": "copy.jsonl"})


@pytest.mark.parametrize("value", ["3", "x" * 5000, "[1, 2]"])
def test_a_section_that_is_no_mapping_is_named_with_settings_it_could_have(recipe: Path, value: str) -> None:
    message = complaint(recipe, f"--ppo.sampling={value}")
    assert "ppo.sampling is " in message and "a section with settings such as max_new_tokens" in message


def test_a_long_list_of_sources_is_read(recipe: Path) -> None:
    sources = ", ".join(f"{{path: data_{i}.jsonl}}" for i in range(100))
    assert len(load_recipe(recipe, [f"--sft.data=[{sources}]"]).sft.data) == 100


@pytest.mark.parametrize("setting", ["name", "tracking.project", "tracking.group"])
@pytest.mark.parametrize("name", ["my recipe", "a+b", "a/b", "..", ".hidden", "-a", "größe", "x" * 81, "a\nb", ""])
def test_a_name_that_could_not_be_published_is_refused_at_once(recipe: Path, setting: str, name: str) -> None:
    assert f": {setting} is " in complaint(recipe, f"--{setting}={name}")


@pytest.mark.parametrize("name", ["a", "My_recipe-2.1", "0" * 80])
def test_a_name_that_loads_can_be_published(recipe: Path, name: str) -> None:
    assert load_recipe(recipe, [f"--name={name}"]).name == name
    for stage in ("sft", "reward_model"):
        check_name(f"{name}/{stage}")


@pytest.mark.parametrize(
    "words",
    [
        ["--ppo.kl_coef", "0.1", "--ppo.kl_coef=0.1"],
        ["--seed=1", "--seed=2"],
        ["--ppo.optimizer={eps: 1e-5}", "--ppo.optimizer.eps=1e-6"],
        ["--ppo.optimizer.eps=1e-6", "--ppo.optimizer={eps: 1e-5}"],
        ["--ppo.lora=null", "--ppo.lora.rank=4"],
        ["--ppo.optimizer={eps: 1e-5, eps: 1e-6}"],
    ],
)
def test_a_setting_that_is_given_twice_on_the_command_line_is_refused(recipe: Path, words: list[str]) -> None:
    assert "given twice" in complaint(recipe, *words)


def test_settings_of_one_section_may_be_given_one_by_one(recipe: Path) -> None:
    words = ["--ppo.optimizer={eps: 1e-5}", "--ppo.optimizer.weight_decay=0.1"]
    optimizer = load_recipe(recipe, words).ppo.optimizer
    assert (optimizer.eps, optimizer.weight_decay) == (1e-5, 0.1)


def test_reading_a_recipe_imports_nothing_that_it_names(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "side_effect.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    section = tmp_path / "section.yaml"
    section.write_text("class_path: side_effect.Thing\n")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        load_recipe(recipe, ["--ppo.monitor=side_effect:judge", "--ppo.rewards=[{function: side_effect:reward}]"])
        for value in ("side_effect.Thing", str(section), "{class_path: side_effect.Thing}"):
            assert "ppo.optimizer" in complaint(recipe, f"--ppo.optimizer={value}")
    assert not (tmp_path / "imported").exists() and "side_effect" not in set(sys.modules) - before


def test_a_copy_of_a_data_set_that_is_also_beside_the_recipe_is_still_found(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), sft__data="rows.jsonl")
    assert load_recipe(path).sft.data[0].path == str(tmp_path / "rows.jsonl")
    assert load_recipe(path, copies={"rows.jsonl": "other.jsonl"}).sft.data[0].path == "other.jsonl"
