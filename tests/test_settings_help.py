"""The help of `triptych run` and of each stage, made from the configs."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import get_type_hints

import pytest

from pipeline.__main__ import STAGE_COMMANDS, main
from pipeline.configs import Recipe
from pipeline.recipe import dataclass_in
from pipeline.settings_help import settings_help

SECTIONS = {name: section for name, kind in get_type_hints(Recipe).items() if (section := dataclass_in(kind))}


def entries(text: str) -> dict[str, str]:
    """Setting -> all that its entry says, white space folded."""
    found = re.findall(r"^  --([\w.]+)(.*(?:\n {3,}.*)*)", text, re.M)
    return {name: " ".join(entry.split()) for name, entry in found}


@pytest.mark.parametrize("command", STAGE_COMMANDS)
def test_a_stages_help_shows_its_own_settings_and_no_other_stages(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = STAGE_COMMANDS[command]
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: triptych {command}" in shown
    assert all(f"--{stage}.{field.name}" in shown for field in fields(SECTIONS[stage]))
    others = set(STAGE_COMMANDS.values()) - {stage}
    assert not [other for other in others if f"--{other}." in shown]
    assert "--seed" in shown and "--tracking.wandb" in shown


def test_the_help_of_run_shows_every_setting_of_every_section() -> None:
    shown = entries(settings_help())
    assert {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in fields(section)} <= shown.keys()
    assert {"name", "seed", "ppo.lora.rank", "sft.optimizer.betas", "sft.mixture.mode"} <= shown.keys()


def test_every_setting_has_a_description_beside_its_default() -> None:
    for name, entry in entries(settings_help()).items():
        words = re.sub(r"\(default: .*\)$|\(required\)$|\{.*?\}|\[\.\.\.\]", "", entry).split()
        assert len([word for word in words if word not in ("N", "X", "TEXT")]) >= 2, (name, entry)


def test_a_default_that_a_stage_gives_to_a_nested_section_is_the_one_shown() -> None:
    shown = entries(settings_help())
    assert shown["ppo.optimizer.eps"].endswith("(default: 1e-05)")
    assert shown["sft.optimizer.eps"].endswith("(default: 1e-08)")
    assert shown["ppo.value_optimizer.learning_rate"].endswith("(default: 9e-06)")
    assert shown["sft.base_model"].endswith("(required)")
    assert shown["ppo.precision"].startswith("{auto,float32,bfloat16}")


def test_the_help_speaks_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = settings_help()
    assert not re.search(r"Literal|Optional|NoneType|<class|\bNone\b|\bTrue\b|\bFalse\b", shown)
    assert max(map(len, shown.splitlines())) <= 80
