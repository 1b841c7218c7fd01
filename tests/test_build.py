from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_recipe import small_recipe, write_recipe

from data_schema import Mixture
from pipeline.build import build, kind_at, paths_of
from pipeline.configs import Recipe
from pipeline.recipe import load_recipe
from stages.errors import ConfigError
from stages.settings import OptimizerConfig, plain

SETTINGS = sorted(paths_of(Recipe))
# What a file gives (text, null, lists, mappings), and what might come from Python (numbers).
STRANGE: list[Any] = [
    *(None, [], ["1", "2"], {}, {"a": "1"}, [[["1"]]], [None], "", "x", "-1", "nan", ".inf", "9" * 5000, "1e999"),
    *(
        "true",
        "2024-01-01",
        "12:30:45",
        "010",
        "0x10",
        "a\x1b[2Jb",
        "a\0b",
        "\ud800",
        "\u202e",
        -1,
        3.5,
        float("nan"),
        True,
    ),
]


def told(rows: Any) -> str | None:
    try:
        build(Recipe, rows)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", SETTINGS)
def test_a_strange_value_is_accepted_or_refused_in_one_line_that_names_the_setting(path: str) -> None:
    *sections, name = path.split(".")
    base = small_recipe(Path("base"))
    base["sft"]["data"] = [base["sft"]["data"]]
    for stage, key in (
        ("comparisons", "prompts"),
        ("ppo", "prompts"),
        ("ppo", "pretraining_data"),
        ("evaluate", "prompts"),
    ):
        base[stage][key] = [base[stage][key]] if isinstance(base[stage][key], dict) else [{"path": base[stage][key]}]
    for value in STRANGE:
        rows = copy.deepcopy(base)
        section = rows
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
        message = told(rows)
        if message is None:
            continue
        assert message.isprintable() and len(message) < 500, (value, message)
        assert not any(word in message for word in ("None", "Literal", "dict", "<class", "Traceback")), message
        # The setting, the section that it makes impossible, or one that it makes incomplete.
        assert path in message or sections[0] in message or name in message, (value, message)


def test_every_setting_that_may_not_be_null_says_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")))
    for path in (
        "sft.epochs",
        "ppo.optimizer",
        "ppo.optimizer.eps",
        "sft.data",
        "tracking",
        "seed",
        "ppo.device",
        "name",
    ):
        with pytest.raises(ConfigError) as by_option:
            load_recipe(recipe, [f"--{path}", "null"])
        changed = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")), **{path.replace(".", "__"): None})
        with pytest.raises(ConfigError) as in_file:
            load_recipe(changed)
        write_recipe(recipe, small_recipe(Path("base")))
        assert str(in_file.value) == str(by_option.value)
        assert f": {path} is null; it must be" in str(in_file.value)


NUMBERS = {"1e-3": 0.001, "1E-3": 0.001, "1_000": 1000.0, ".5": 0.5, "5.": 5.0, "+2": 2.0, "0.10": 0.1, "00": None}
NUMBERS |= dict.fromkeys(
    ("010", "0x10", "0o10", "12:30:45", "on", "1,5", "1 000", "nan", ".inf", "1e999", "-0x1"), None
)


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_a_number_means_the_same_in_a_file_and_as_an_option(tmp_path: Path, text: str, number: float | None) -> None:
    option = write_recipe(tmp_path / "option.yaml", small_recipe(Path("base")))
    rows = yaml.safe_load(option.read_text())
    rows["sft"]["optimizer"]["learning_rate"] = "@"
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(rows).replace("'@'", text))
    for path, words in ((file, []), (option, [f"--sft.optimizer.learning_rate={text}"])):
        if number is None:
            with pytest.raises(ConfigError, match=r"sft\.optimizer\.learning_rate is .*; it must be a number"):
                load_recipe(path, words)
        else:
            recipe = load_recipe(path, words)
            assert recipe.sft is not None and recipe.sft.optimizer.learning_rate == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("Yes", True),
        ("on", True),
        ("FALSE", False),
        ("no", False),
        ("off", False),
        ("1", None),
        ("y", None),
    ],
)
def test_true_and_false_have_three_spellings_each(text: str, value: bool | None) -> None:
    rows = {**small_recipe(Path("base"))["sft"], "data": [{"path": "x"}], "packing": text}
    kind = kind_at(Recipe, "sft").__args__[0]
    if value is None:
        with pytest.raises(ConfigError, match=f"sft.packing is {text}; it must be true or false"):
            build(kind, rows, "sft")
    else:
        assert build(kind, rows, "sft").packing is value


def test_text_in_brackets_is_text_where_a_setting_takes_text(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(Path("base")))
    recipe = load_recipe(path, ["--sft.pad_token", "[PAD]"])
    assert recipe.sft is not None and recipe.sft.pad_token == "[PAD]"


def test_an_error_of_a_nested_section_has_the_full_path() -> None:
    with pytest.raises(ConfigError, match=r"^ppo\.value_optimizer\.eps is 0; it must be greater than 0$"):
        build(OptimizerConfig, {"eps": "0"}, "ppo.value_optimizer")
    with pytest.raises(ConfigError, match=r"^sft\.mixture\.cap must be at least 1"):
        build(Mixture, {"cap": "0"}, "sft.mixture")
    rows = [{"path": "a"}, {"path": "b", "limit": "0"}]
    message = told({**small_recipe(Path("base")), "sft": {"base_model": "m", "data": rows}})
    assert message is not None and message.startswith("sft.data[1].limit must be at least 1")


def test_an_infinite_temperature_of_a_mixture_can_be_written_and_printed() -> None:
    mixture = build(Mixture, {"mode": "temperature", "temperature": ".inf"}, "sft.mixture")
    assert mixture.temperature == float("inf")
    assert build(Mixture, plain(mixture), "sft.mixture") == mixture
