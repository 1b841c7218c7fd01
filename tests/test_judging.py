from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from stages.errors import ConfigError
from stages.judging import check_function, gold_score, load_function, load_judge, names_defined


def test_a_judge_is_found_by_module_and_function() -> None:
    from data_schema.quickstart.world import judge

    assert inspect.unwrap(load_judge("data_schema.quickstart.world:judge", "evaluate.judge")) is judge


def test_a_judge_that_fails_on_an_answer_is_named_with_its_place_and_the_answer() -> None:
    judge = load_judge("data_schema.quickstart.world:judge", "--judge")
    with pytest.raises(ConfigError, match=r"--judge: .* raised KeyError: .*\(world.py:\d+\).*'fox \.'") as told:
        judge({"colour": "red"}, "fox .", True)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("grades", [{"style": 1.0}, {}, None, 0.5, [1.0]])
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


def too_few(meta: object) -> dict[str, float]:
    return {}


async def later(meta: object, answer: str, ended: bool) -> dict[str, float]:
    return {}


def three(prompts: object, answers: object, seed: object, more: object = None) -> list[float]:
    return []


def as_trl_calls_it(*, prompts: object, completions: object, **columns: object) -> list[float]:
    return []


def ends_python(meta: object, answer: str, ended: bool) -> dict[str, float]:
    sys.exit(3)


@pytest.mark.parametrize("key", ["evaluate.judge", "comparisons.labeler", "ppo.monitor", "ppo.rewards[0].function"])
@pytest.mark.parametrize("name", ["too_few", "as_trl_calls_it"])
def test_a_function_that_cannot_be_called_as_needed_is_refused_before_it_is_called(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot be called with 3 arguments; write it as 'def {name}\(") as caught:
        load_function(f"test_judging:{name}", key)
    assert str(caught.value).startswith(key)
    assert load_function("test_judging:three", key) is not None


def test_a_function_that_returns_later_is_refused() -> None:
    with pytest.raises(ConfigError, match="is an async function"):
        load_function("test_judging:later", "ppo.monitor")


def test_a_judge_that_ends_python_is_one_line() -> None:
    with pytest.raises(ConfigError, match="raised SystemExit: 3"):
        load_judge("test_judging:ends_python", "ppo.monitor")({}, "a", True)


GRADES: object = None  # what `returns` gives


def returns(meta: object, response: str, finished: bool) -> object:
    return GRADES


@pytest.mark.parametrize(
    ("grades", "words"),
    [
        (None, "returned nothing"),
        (0.5, "returned the number 0.5"),
        ([1.0], "returned something that is not a dict"),
        ({"gold": "high"}, "returned a 'gold' that is not a finite number"),
        ({"gold": 1.0, "style": float("nan")}, "returned a 'style' that is not a finite number"),
        ({"gold": None}, "returned a 'gold' that is not a finite number"),
    ],
)
def test_grades_that_are_no_numbers_by_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, grades: object, words: str
) -> None:
    monkeypatch.setattr("test_judging.GRADES", grades)
    with pytest.raises(ConfigError, match=rf"^evaluate\.judge: 'test_judging:returns' {words}") as error:
        load_judge("test_judging:returns", "evaluate.judge")({}, "fox .", True)
    assert "\n" not in str(error.value)


MODULE = """
import os.path
from math import sqrt as root, floor
if os.name == "posix":
    first = second = lambda meta, response, finished: {}
else:
    def other(): ...
try:
    from nowhere import missing
except ImportError:
    missing = None
class Judge:
    def inner(self): ...
def judge():
    local = 1
(left, right), listed[0] = pairs
"""


def test_the_names_a_module_defines_are_found_without_running_it(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    found = {"os", "root", "floor", "first", "second", "other", "missing", "Judge", "judge", "left", "right"}
    assert names_defined(file) == found
    for open_end in ("from os import *", "def __getattr__(name): ..."):
        file.write_text(MODULE + open_end)
        assert names_defined(file) is None  # only running it can tell


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("broken_module:judge", "'broken_module' is not valid Python in line 2"),
        ("no.such.module:judge", "no such Python module"),
        ("data_schema.quickstart.world:jugde", "does not define 'jugde'. Did you mean 'judge'?"),
        ("data_schema.quickstart.world", "must be 'module:function'"),
        ("os:path:join", "must be 'module:function'"),
        ("../world:judge", "must be 'module:function'"),
    ],
)
def test_a_function_that_is_not_there_is_found_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, part: str
) -> None:
    (tmp_path / "broken_module.py").write_text("x = 1\ndef f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as told:
        check_function(path, "evaluate.judge")
    assert part in str(told.value) and "evaluate.judge" in str(told.value) and "\n" not in str(told.value)


def test_a_module_that_fails_when_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_module.py").write_text("x = undefined\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check_function("failing_module:x", "evaluate.judge")
    with pytest.raises(ConfigError, match=r"evaluate\.judge: importing 'failing_module' raised NameError"):
        load_judge("failing_module:x", "evaluate.judge")
