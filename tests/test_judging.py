from __future__ import annotations

import inspect

import pytest

from stages.errors import ConfigError
from stages.judging import gold_score, load_judge


def test_a_judge_is_found_by_module_and_function() -> None:
    from data_schema.quickstart.world import judge

    assert inspect.unwrap(load_judge("data_schema.quickstart.world:judge", "evaluate.judge")) is judge


def test_a_judge_that_fails_on_an_answer_is_named_with_its_place_and_the_answer() -> None:
    judge = load_judge("data_schema.quickstart.world:judge", "--judge")
    with pytest.raises(ConfigError, match=r"--judge: .* raised KeyError: .*\(world.py:\d+\).*'fox \.'") as told:
        judge({"colour": "red"}, "fox .", True)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("grades", [{"style": 1.0}, None, 0.5])
def test_answers_cannot_be_ordered_without_a_gold_score(grades: object) -> None:
    assert gold_score({"gold": 2, "style": 1.0}, "my:judge") == 2.0
    with pytest.raises(ConfigError, match=r"'my:judge' returned .*, which has no 'gold'"):
        gold_score(grades, "my:judge")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("data_schema.quickstart.world.judge", "must be 'module:function'"),
        ("no_such_module:judge", "cannot find 'no_such_module:judge'"),
        ("data_schema.quickstart.world:judges", "cannot find"),
        ("data_schema.quickstart.world:NOUNS", "is not a function"),
        (":judge", "ppo.monitor"),
    ],
)
def test_a_path_that_leads_to_no_function_is_refused_with_its_key(path: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        load_judge(path, "ppo.monitor")
    assert "ppo.monitor" in str(caught.value) and "\n" not in str(caught.value)
