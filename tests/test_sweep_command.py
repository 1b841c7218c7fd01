from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_recipe import small_recipe, write_recipe

from data_schema import Demonstration, Message
from pipeline.__main__ import main
from stages.errors import ConfigError
from stages.sft.held_out_losses import (
    RowLoss,
    bits_per_byte,
    compare_losses,
    read_losses,
    row_loss,
    summarise_losses,
    write_losses,
)
from workbench.sweep.command import parse_grid, parse_seeds
from workbench.sweep.report import Result, legend, summarise_sweep, table_of

pytestmark = pytest.mark.timeout(300)
FEW_STEPS = {
    "sft__epochs": 0.1,
    "sft__data": {"path": "python:data_schema.quickstart.data:demonstrations", "limit": 300},
}


@pytest.fixture
def recipe(small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return write_recipe(tmp_path / "r.yaml", small_recipe(small_base), **FEW_STEPS)


def sweep(recipe: Path, *words: str, root: str = "out") -> int:
    return main(["sweep", str(recipe), "--root", str(recipe.parent / root), *words])


def summary_of(recipe: Path, name: str, root: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.parent / root / "sweeps" / name / "summary.json").read_text())
    return found


def test_two_templates_give_one_table_and_a_second_call_only_prints_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--over", "sft.template=quickstart,chatml"]
    assert sweep(recipe, *words) == 0
    summary = summary_of(recipe, "small-template")
    assert [row["settings"] for row in summary["rows"]] == [{"sft.template": name} for name in ("quickstart", "chatml")]
    store = recipe.parent / "out" / "store" / "checkpoints"
    rows = [read_losses(store / row["runs"]["0"]["key"]) for row in summary["rows"]]
    assert rows[0].keys() == rows[1].keys()
    for row, losses in zip(summary["rows"], rows, strict=True):
        manifest = json.loads((store / row["runs"]["0"]["key"] / "manifest.json").read_text())
        bits = sum(loss.nats for loss in losses.values()) / math.log(2) / sum(loss.bytes for loss in losses.values())
        assert row["metrics"]["bits_per_byte"]["mean"] == pytest.approx(bits)
        assert manifest["metrics"]["held_out_bits_per_byte"] == pytest.approx(bits)
        assert row["metrics"]["held_out_loss"]["mean"] == manifest["metrics"]["held_out_loss"]
    low = min(range(2), key=lambda i: summary["rows"][i]["metrics"]["bits_per_byte"]["mean"])
    assert (summary["decided_by"], summary["best"]) == ("bits_per_byte", low)

    told = capsys.readouterr().out
    assert told.count("[1/1] sft") == 2
    before = summary_of(recipe, "small-template")
    assert sweep(recipe, *words) == 0
    again = capsys.readouterr().out
    assert "[1/1]" not in again and "bits per byte" in again
    assert summary_of(recipe, "small-template") == before
    table = (recipe.parent / "out" / "sweeps" / "small-template" / "table.md").read_text()
    assert all(f"| {name} |" in table for name in ("quickstart", "chatml"))
    assert table.count("* |") == 1


def test_a_cell_that_fails_is_reported_and_the_others_go_on(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = recipe.parent / "bad.jinja"
    bad.write_text("{{ messages | length }}")
    assert sweep(recipe, "--over", f"sft.template={bad},quickstart", "--name=two") == 2
    told = capsys.readouterr()
    assert "bad.jinja' changes a prompt's text" in told.err
    assert "triptych: 1 of 2 runs failed (" in told.err
    assert "Traceback" not in told.err
    summary = summary_of(recipe, "two")
    assert ["error" in row["runs"]["0"] for row in summary["rows"]] == [True, False]
    assert summary["best"] == 1
    assert "1 of 1" in told.out


def test_runs_that_share_a_stage_do_it_once_and_all_have_one_group(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import runner as pipeline

    asked: list[tuple[str, str, str, str | None]] = []
    ran: list[str] = []

    def note(plan: Any, recipe: Any, store: Any, root: Path) -> Any:
        asked.append((plan.stage, plan.key, recipe.name, recipe.tracking.group))
        if plan.stage == "comparisons":
            raise ConfigError("no labeler today; come back tomorrow")
        ran.append(plan.key)
        return real(plan, recipe, store, root)

    real = pipeline.run_stage
    monkeypatch.setattr(pipeline, "run_stage", note)
    words = ["--over", "comparisons.label_noise=0.1,0.2", "--over", "ppo.kl_coef=0.1,0.2", "--stage", "ppo"]
    assert sweep(recipe, *words) == 2
    assert len(ran) == 1  # one SFT model for all
    assert [stage for stage, *_ in asked] == ["sft", "comparisons", "comparisons"]  # what failed is not tried again
    assert {group for *_, group in asked} == {"small-label_noise-kl_coef"}
    assert "no labeler today" in capsys.readouterr().err


def test_a_dry_run_runs_nothing_and_says_what_would_be_shared(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(recipe, "--over", "reward_model.epochs=1,2", "--stage", "reward-model", "--dry-run") == 0
    told = capsys.readouterr().out
    assert told.count("shared") == 2 and told.count("run") >= 4
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--over", "sft.template"], "--over is 'sft.template'; it must be KEY=VALUE,VALUE"),
        (["--over", "sft.template=a,,b"], "it must be KEY=VALUE,VALUE"),
        (["--over", "sft.template=plain,plain"], "name each key, and each of its values, once"),
        (["--over", "sft.templat=plain"], "'sft' has no setting 'templat'. Did you mean 'template'?"),
        (["--over", "sft.template=plain,chatm"], "unknown template 'chatm'. Did you mean 'chatml'?"),
        (["--over", "sft.epochs=0,1"], "sft.epochs is 0; it must be greater than 0"),
        (["--over", "sft.epochs=1", "--seeds", "0,x"], "--seeds is '0,x'; it must be different whole numbers"),
        (["--over", "sft.epochs=1", "--stage", "rm"], "--stage is 'rm'; it must be one of sft,"),
        (["--over", "sft.epochs=1", "--name", "a/b"], "--name is 'a/b'; it names a folder"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_runs(
    recipe: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert sweep(recipe, *words) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (recipe.parent / "out").exists()


def test_commas_within_brackets_belong_to_a_value() -> None:
    assert parse_grid(["a.b=[x, y],{p: q, r: s}", "--c=1"]) == {"a.b": ["[x, y]", "{p: q, r: s}"], "c": ["1"]}
    assert parse_seeds(" 3,1") == [3, 1]


# ---- the numbers


def losses(*rows: tuple[str, float, int, int]) -> dict[str, RowLoss]:
    return {row[0]: RowLoss(*row) for row in rows}


def result(value: str, seed: int = 0, found: dict[str, RowLoss] | None = None) -> Result:
    return Result({"sft.template": value}, seed, f"key {value} {seed}", None, {}, found or {}, "")


def test_bits_per_byte_count_the_answers_bytes_and_not_the_tokens(tmp_path: Path) -> None:
    turns = (Message("user", "Bird?"), Message("assistant", "鳥!"), Message("user", "?"), Message("assistant", "abcd"))
    record = Demonstration("1", "test", turns)
    few, many = row_loss(record, 8 * math.log(2), 3), row_loss(record, 8 * math.log(2), 30)
    assert few.bytes == 8  # three for the sign, one for the mark, four
    assert bits_per_byte([few]) == bits_per_byte([many]) == pytest.approx(1)
    assert summarise_losses([few])["held_out_loss"] == pytest.approx(10 * summarise_losses([many])["held_out_loss"])
    assert few.demonstration == row_loss(Demonstration("2", "elsewhere", turns), 1.0, 1).demonstration
    write_losses(tmp_path, [few])
    assert read_losses(tmp_path) == {few.demonstration: few}
    assert summarise_losses([]) == {} and read_losses(tmp_path / "none") == {}


def test_the_paired_difference_is_that_of_the_two_and_its_error_that_of_a_resampling() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 80, 400)
    nats = {name: sizes * level + rng.normal(0, 5, 400) for name, level in (("a", 0.9), ("b", 0.8))}
    a, b = (
        {str(i): RowLoss(str(i), n, 9, int(s)) for i, (n, s) in enumerate(zip(nats[k], sizes, strict=True))}
        for k in "ab"
    )
    found = compare_losses(a, b)
    assert found.bits_per_byte == pytest.approx(bits_per_byte(list(a.values())) - bits_per_byte(list(b.values())))
    draws = rng.integers(0, 400, (2000, 400))
    resampled = (nats["a"] - nats["b"])[draws].sum(1) / sizes[draws].sum(1) / math.log(2)
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.1)
    one = {"0": a["0"]}
    assert math.isnan(compare_losses(one, {"0": b["0"]}).standard_error)


def test_only_rows_that_every_setting_has_are_compared_and_that_is_said() -> None:
    short = losses(("x", 7.0, 5, 10))
    long = losses(("x", 6.0, 9, 10), ("y", 500.0, 9, 10))
    summary = summarise_sweep("sft", [result("plain", found=short), result("alpaca", found=long)])
    values = [row["metrics"]["bits_per_byte"]["mean"] * math.log(2) for row in summary["rows"]]
    assert values == pytest.approx([0.7, 0.6])
    assert summary["best"] == 1  # its hard row y is nothing the other was asked
    assert summary["rows"][0]["above_best"]["mean"] * math.log(2) == pytest.approx(0.1)
    assert any("left out of bits per byte" in line for line in legend(summary))


def test_seeds_give_mean_and_deviation_and_a_setting_with_a_failed_run_is_not_the_best() -> None:
    made = [result(v, s, losses(("x", n, 5, 10))) for v, s, n in [("a", 0, 7.0), ("a", 1, 9.0), ("b", 0, 6.0)]]
    failed = result("b", 1)._replace(error="no memory")
    summary = summarise_sweep("sft", [*made, failed])
    first, second = summary["rows"]
    per_nat = 1 / 10 / math.log(2)
    assert first["metrics"]["bits_per_byte"]["mean"] == pytest.approx(8 * per_nat)
    assert first["metrics"]["bits_per_byte"]["deviation"] == pytest.approx(math.sqrt(2) * per_nat)
    assert summary["best"] == 0
    assert second["above_best"] == {"mean": pytest.approx(-per_nat), "standard_error": None}
    header, cells = table_of(summary)
    assert header[-1] == "failed" and [line[-1] for line in cells] == ["", "1 of 2"]


def test_settings_without_a_seed_in_common_are_not_paired() -> None:
    summary = summarise_sweep(
        "sft", [result("a", 0, losses(("x", 7.0, 5, 10))), result("b", 1, losses(("y", 6.0, 5, 10)))]
    )
    assert [row["above_best"] is None for row in summary["rows"]] == [True, False]


def test_scores_of_different_rewards_are_not_compared() -> None:
    def cells(models: tuple[str, str], **more: float) -> list[Result]:
        rows = [result(name)._replace(metrics={"objective/score": score}) for name, score in (("a", 1.0), ("b", 2.0))]
        return [
            row._replace(scored_by=model, metrics={**row.metrics, **more})
            for row, model in zip(rows, models, strict=True)
        ]

    assert summarise_sweep("ppo", cells(("r", "r")))["best"] == 1
    apart = summarise_sweep("ppo", cells(("r", "s")))
    assert apart["best"] is None and "do not compare" in apart["remarks"][0]
    assert summarise_sweep("ppo", cells(("r", "s"), **{"monitor/gold": 0.5}))["decided_by"] == "monitor/gold"
