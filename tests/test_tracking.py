from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import StoreError
from stages.tracking import Tracker, WandbMode, resolve_mode

ROOT = Path(__file__).parent.parent
WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def tracker(run_dir: Path, **changes: Any) -> Tracker:
    about: dict[str, Any] = {
        "project": "p",
        "group": "pipeline",
        "job_type": "ppo",
        "run_id": "pipeline/ppo",
        "config": {"kl_coef": 0.05},
        "wandb_mode": "auto",
    }
    return Tracker(run_dir, **{**about, **changes})


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def inspect(run_dir: Path, *options: str) -> str:
    command = [str(WANDB), "leet", "inspect", *options, "--json", str(run_dir / "wandb")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def history(run_dir: Path, text: str = "") -> list[dict[str, Any]]:
    """What wandb holds of the latest run, one dict a step."""
    lines = [json.loads(line) for line in (text or inspect(run_dir)).splitlines()]
    items = [line["history"]["item"] for line in lines if line["type"] == "history"]
    return [{k: v for k, v in item.items() if k == "_step" or not k.startswith("_")} for item in items]


def test_the_record_and_wandb_hold_the_same_curve(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tracker(tmp_path) as run:
        run.log({"reward": 0.5, "tokens": 7}, step=10)
        run.log({"reward": math.nan, "kl": math.inf}, step=20)
        run.log({"eval/win_rate": 1.0}, step=20)
        run.table("samples", ["prompt", "score"], [["hi", 1.5], ["ho", -math.inf]], step=20)
        run.summary({"best": 0.5})
    without_time = [{k: v for k, v in record.items() if k != "time"} for record in records(tmp_path / "metrics.jsonl")]
    assert without_time == [
        {"step": 10, "reward": 0.5, "tokens": 7},
        {"step": 20, "reward": "nan", "kl": "inf"},
        {"step": 20, "eval/win_rate": 1.0},
    ]
    assert records(tmp_path / "samples.jsonl") == [
        {"step": 20, "prompt": "hi", "score": 1.5},
        {"step": 20, "prompt": "ho", "score": "-inf"},
    ]
    text = inspect(tmp_path)
    first, second = history(tmp_path, text)
    assert first == {"_step": 10, "reward": 0.5, "tokens": 7}
    assert second["_step"] == 20 and second["eval/win_rate"] == 1.0 and second["samples.nrows"] == 2
    assert (second["reward"], second["kl"]) == ("NaN", "Infinity")
    summary = json.loads(inspect(tmp_path, "--summary"))
    assert (summary["run_id"], summary["state"], summary["exit_code"]) == ("pipeline-ppo", "finished", 0)
    assert summary["config"] == {"kl_coef": 0.05} and summary["summary"]["best"] == 0.5
    about = next(line["run"] for line in map(json.loads, text.splitlines()) if line["type"] == "run")
    assert (about["project"], about["run_group"], about["job_type"]) == ("p", "pipeline", "ppo")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("error", "exit_code"), [(RuntimeError("diverged"), 1), (SystemExit(143), 143)], ids=str)
def test_an_exception_ends_the_run_with_its_exit_code(tmp_path: Path, error: BaseException, exit_code: int) -> None:
    with pytest.raises(type(error)), tracker(tmp_path) as run:
        run.log({"reward": 1.0}, step=1)
        raise error
    summary = json.loads(inspect(tmp_path, "--summary"))
    assert (summary["exit_code"], summary["step"]) == (exit_code, 1)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "triptych.tracking"]


def killed_run(run_dir: Path, steps: Sequence[int]) -> None:
    """A process that logs metrics and tables and is killed in the middle of a line."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_tracking import tracker
run = tracker(Path({str(run_dir)!r}))
for step in {list(steps)!r}:
    run.log({{"reward": step / 2, "bad": float("inf")}}, step=step)
    run.table("samples", ["text"], [[f"try 1, step {{step}}"]], step=step)
run._record.write('{{"step": 99, "rew')
run._record.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    # WANDB_SERVICE would let it share this process's wandb, which outlives it
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == -9


def test_a_killed_run_continues_with_neither_holes_nor_doubles(tmp_path: Path) -> None:
    killed_run(tmp_path, range(6))
    with tracker(tmp_path, resume_step=3) as run:
        for step in range(4, 8):
            run.log({"reward": step / 2, "bad": math.inf}, step=step)
            run.table("samples", ["text"], [[f"try 2, step {step}"]], step=step)
    assert [(r["step"], r["reward"]) for r in records(tmp_path / "metrics.jsonl")] == [(i, i / 2) for i in range(8)]
    expected = [f"try {1 if step <= 3 else 2}, step {step}" for step in range(8)]
    assert [row["text"] for row in records(tmp_path / "samples.jsonl")] == expected
    seen = history(tmp_path)
    assert [(item["_step"], item["reward"], item["bad"]) for item in seen] == [(i, i / 2, "Infinity") for i in range(8)]
    assert all(item["samples.nrows"] == 1 for item in seen)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_starting_afresh_moves_the_old_record_aside(tmp_path: Path) -> None:
    for attempt in range(3):
        with tracker(tmp_path, wandb_mode="disabled") as run:
            run.log({"attempt": attempt}, step=0)
            run.table("samples", ["text"], [["a"]], step=0)
    assert [record["attempt"] for record in records(tmp_path / "metrics.jsonl")] == [2]
    assert len(records(tmp_path / "samples.jsonl")) == 1
    kept = [records(tmp_path / f"before-{i}" / "metrics.jsonl")[0]["attempt"] for i in (1, 2)]
    assert kept == [0, 1]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[[1]]", b'[["../x", []]]', b"\xff", b"[" * 100_000])
def test_a_damaged_list_of_tables_is_no_obstacle_to_a_fresh_start(tmp_path: Path, content: bytes) -> None:
    with tracker(tmp_path, wandb_mode="disabled") as run:
        run.table("samples", ["prompt"], [["old"]], step=1)
    (tmp_path / "tables.json").write_bytes(content)
    (tmp_path / "before-3x").mkdir()
    (tmp_path / "before-2").mkdir()
    with tracker(tmp_path, wandb_mode="disabled") as run:
        run.table("samples", ["prompt"], [["new"]], step=1)
    assert records(tmp_path / "samples.jsonl") == [{"step": 1, "prompt": "new"}]
    assert (tmp_path / "before-3" / "tables.json").exists()


@pytest.mark.parametrize("file", ["tables.json", "metrics.jsonl"])
def test_a_damaged_record_cannot_be_continued_and_says_what_to_do(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracker(tmp_path) as run:
        run.log({"loss": 1.0}, step=1)
        run.table("samples", ["prompt"], [["old"]], step=1)
    (tmp_path / file).write_text("[1\n")
    with pytest.raises(StoreError, match=rf"{file}.* is damaged; delete .* run the stage again"):
        tracker(tmp_path, resume_step=1)


def test_a_warning_is_logged_at_once_and_remembered_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracker(tmp_path) as run, caplog.at_level(logging.WARNING, "triptych"):
        for text in ("few answers end", "few answers end", "no held-out pairs"):
            run.warn(text)
    assert run.warnings == ["few answers end", "no held-out pairs"]
    assert [record.getMessage() for record in caplog.records] == [f"warning: {text}" for text in run.warnings]


def test_a_disabled_tracker_never_imports_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.tracking import Tracker\n"
        f"about = dict(project='p', group='g', job_type='t', run_id='i', config={{}}, wandb_mode='disabled')\n"
        f"with Tracker(Path({str(tmp_path)!r}), **about) as run: run.log({{'a': 1}}, step=0)\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "WANDB_MODE": "disabled"})
    assert len(records(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("failing", ["init", "log"])
def test_a_failure_of_wandb_is_one_warning_and_the_record_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    import wandb

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(*((wandb, "init", fail) if failing == "init" else (wandb.Run, "log", fail)))
    with caplog.at_level(logging.WARNING), tracker(tmp_path) as run:
        run.log({"reward": 1.0}, step=0)
        run.log({"reward": 2.0}, step=1)
    assert [record["reward"] for record in records(tmp_path / "metrics.jsonl")] == [1.0, 2.0]
    (warning,) = warnings(caplog)
    assert warning.startswith("wandb: ") and "no space left" in warning and "\n" not in warning


def test_without_a_server_an_online_run_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("stages.tracking.INIT_SECONDS", 1.0)
    with tracker(tmp_path) as run:
        run.log({"reward": 1.0}, step=0)
    (warning,) = warnings(caplog)
    assert "staying offline" in warning and "wandb sync" in warning
    assert history(tmp_path) == [{"_step": 0, "reward": 1.0}]


@pytest.mark.parametrize(
    ("wandb_mode", "environment", "login", "expected"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {}, "machine example.org login user password k", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "", "disabled"),
        ("online", {}, "", "online"),
    ],
)
def test_the_mode_follows_the_environment_then_the_setting_then_the_account(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb_mode: WandbMode,
    environment: dict[str, str],
    login: str,
    expected: str,
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(login + "\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode(wandb_mode) == expected


def test_a_metric_that_would_hide_the_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracker(tmp_path) as run:
        with pytest.raises(ValueError, match="named 'step'"):
            run.log({"step": 3}, step=1)
        with pytest.raises(ValueError, match="named 'step'"):
            run.table("samples", ["step"], [[3]], step=1)
