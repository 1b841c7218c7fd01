"""Every recipe in recipes/ loads, and names only functions that are there; test_runner.py runs a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_schema.locations import PythonLocation, locate, python_function
from pipeline.configs import Recipe
from pipeline.plan import STAGES
from pipeline.recipe import load_recipe
from stages.judging import load_judge
from stages.settings import plain, source_lists

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
assert RECIPES, "recipes/ holds no recipe"


def differing_keys(one: Any, other: Any, prefix: str = "") -> set[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {prefix}
    keys = one.keys() | other.keys()
    return {
        found for key in keys for found in differing_keys(one.get(key), other.get(key), f"{prefix}.{key}".strip("."))
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_named_as_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe)
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_function_a_recipe_names_is_there(path: Path) -> None:
    recipe = load_recipe(path)
    for stage in filter(None, (getattr(recipe, name) for name in STAGES)):
        for key in ("labeler", "judge", "monitor"):
            if getattr(stage, key, None):
                assert callable(load_judge(getattr(stage, key), key))
        for sources in source_lists(stage).values():
            for source in sources:
                if source.path.startswith("python:"):
                    location = locate(source.path)
                    assert isinstance(location, PythonLocation)
                    assert callable(python_function(location))


def test_the_quickstart_without_kl_has_fewer_comparisons_more_iterations_and_no_penalty() -> None:
    with_kl, without = (
        plain(load_recipe(ROOT / "recipes" / f"{name}.yaml")) for name in ("quickstart", "quickstart_no_kl")
    )
    assert differing_keys(with_kl, without) == {"name", "comparisons.prompts", "ppo.iterations", "ppo.kl_coef"}
    assert without["ppo"]["kl_coef"] == 0 < with_kl["ppo"]["kl_coef"]
    assert without["ppo"]["iterations"] > with_kl["ppo"]["iterations"]
    assert without["comparisons"]["prompts"][0]["limit"] < with_kl["comparisons"]["prompts"][0]["limit"]


def test_the_quickstart_never_trains_on_the_judge_or_on_test_prompts() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    assert recipe.comparisons is not None and not recipe.reward_model.data
    for sources in (recipe.sft.data, recipe.comparisons.prompts, recipe.ppo.prompts, recipe.ppo.pretraining_data):
        assert {source.split for source in sources} == {"train"}
    assert {source.split for source in recipe.evaluate.prompts} == {"test"}
