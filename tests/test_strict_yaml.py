from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import load_recipe
from pipeline.strict_yaml import read_file, read_text
from stages.errors import ConfigError


def test_plain_values_stay_text_and_only_null_is_null() -> None:
    text = "{a: 010, b: 1_000, c: on, d: 12:30:45, e: 2024-01-01, f: null, g: ~, h: 'null', i: , j: [1, x]}"
    assert read_text(text, "here") == {
        **{"a": "010", "b": "1_000", "c": "on", "d": "12:30:45", "e": "2024-01-01"},
        **{"f": None, "g": None, "h": "null", "i": None, "j": ["1", "x"]},
    }


@pytest.mark.parametrize(
    ("text", "named", "lines"),
    [
        ("name: a\nname: b\n", "'name' is given twice", "lines 1 and 2"),
        ("ppo:\n  kl_coef: 1\n  gamma: 1\n  kl_coef: 2\n", "'ppo.kl_coef' is given twice", "lines 2 and 4"),
        ("sft:\n  data: [{path: a, path: b}]\n", "'sft.data.path' is given twice", "line 2"),
        ('ppo: {}\nsft: {}\n"ppo": {}\n', "'ppo' is given twice", "lines 1 and 3"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, named: str, lines: str
) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as told:
        load_recipe(path)
    assert lines in str(told.value) and str(path) in str(told.value)
    child = tmp_path / "child.yaml"
    child.write_text("extends: twice.yaml\n")
    with pytest.raises(ConfigError, match=named):
        load_recipe(child)
    if "\n" in text.strip():
        return
    with pytest.raises(ConfigError, match="given twice"):
        read_text(text, "--ppo")


def test_merge_keys_give_what_a_mapping_does_not_give_itself() -> None:
    text = "{base: &b {x: 1, y: 2}, own: {<<: *b, x: 3}, several: {<<: [{x: 4}, *b]}}"
    assert read_text(text, "here") == {
        "base": {"x": "1", "y": "2"},
        "own": {"x": "3", "y": "2"},
        "several": {"x": "4", "y": "2"},
    }


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        (b"name: [", ":1:"),
        (b"sft:\n\tdata: x\n", ":2:1 cannot be read as YAML: a tab; indent with spaces"),
        (b"name: \xff\n", ":1: not UTF-8"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"name: a\x00b\n", ":1 has a control character"),
        (b"{a: " * 5000, "nested more than"),
        (b"a: [" + b"[" * 30 + b"]" * 30 + b"]", "nested more than"),
        (BOMB.encode(), "values once its aliases are filled in"),
        (b"a: &a [*a]", "nested more than"),
        (b"a: !!python/object/apply:os.system [x]", "tag"),
        (b"a: !mine x", "tag"),
        (b"? [a, b]\n: c", "cannot be the name of a setting"),
        (b"a: {<<: x}", "'<<' takes a mapping"),
        (b"a: 1\n---\nb: 2\n", "document"),
        (b"a: *nothing", "alias"),
        (b"- a\n", "not a mapping"),
        (b"x" * (1 << 20) + b"x", "larger than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, contents: bytes, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(contents)
    with pytest.raises(ConfigError) as told:
        read_file(path)
    message = str(told.value)
    assert part in message and str(path) in message and "\n" not in message and len(message) < 400


def test_a_byte_order_mark_and_other_scripts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes("name: größe\n".encode("utf-8-sig"))
    assert read_file(path) == {"name": "größe"}
