from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_recipe import Chain

from checkpoint_store import CheckpointStore
from data_schema import DataError
from pipeline.__main__ import main
from workbench.curves.command import sparkline
from workbench.curves.record import find_record, read_curves

KEY = "0123456789abcdef0123"
PANELS = {  # of a PPO run with the quickstart's monitor
    "objective/score": ("Learned reward", "score of the reward model"),
    "monitor/gold": ("Gold score", "score of the judge"),
    "monitor/correctness": ("Correctness", "share of each task solved"),
    "objective/kl": ("Distance from SFT", "KL, nats per answer"),
}


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def write_record(path: Path, steps: int = 5, slope: float = 1.0, without: str = "") -> Path:
    """A record in which every metric is `slope` times the step."""
    rows = [{"step": step, "time": 0.5, **dict.fromkeys(PANELS, slope * step)} for step in range(1, steps + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != without}) + "\n" for row in rows))
    return path


def test_a_picture_has_a_panel_for_each_metric_and_a_line_for_each_run(tmp_path: Path) -> None:
    runs = [write_record(tmp_path / "a.jsonl"), write_record(tmp_path / "b.jsonl", slope=-1.0)]
    picture = tmp_path / "images" / "curves.svg"
    assert main(["curves", *map(str, runs), "--labels", "with KL", "without KL", "--out", str(picture)]) == 0
    svg = picture.read_text(encoding="utf-8")
    for text in ("with KL", "without KL", "PPO iteration", *(word for panel in PANELS.values() for word in panel)):
        assert f">{text}</text>" in svg
    assert len(re.findall(r'aria-roledescription="line mark"', svg)) == 2 * len(PANELS)
    assert 800 <= float(re.search(r'<svg[^>]* width="([\d.]+)"', svg)[1]) <= 900


def test_a_png_can_be_had_as_well(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    assert main(["curves", str(write_record(tmp_path / "a.jsonl")), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_published_run_is_found_by_its_name(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    CheckpointStore(tmp_path / "out" / "store").publish(
        files,
        stage="ppo",
        name="tiny/ppo",
        key=KEY,
        config={},
        parents={},
        data={},
        code_version="1",
        seed=0,
        metrics={},
    )
    record = write_record(tmp_path / "out" / "runs" / KEY / "metrics.jsonl")
    assert find_record("tiny/ppo", tmp_path / "out") == record
    record.unlink()
    with pytest.raises(DataError, match=r"tiny/ppo has no metrics at .*metrics\.jsonl; give the path"):
        find_record("tiny/ppo", tmp_path / "out")


def test_a_missing_metric_is_named_with_those_there_are(tmp_path: Path) -> None:
    record = write_record(tmp_path / "a.jsonl", without="monitor/gold")
    with pytest.raises(
        DataError, match=r"has no monitor/gold; .* --metrics among: objective/score, monitor/correctness"
    ):
        read_curves(record, "a", list(PANELS))


def test_without_a_choice_the_main_metrics_that_are_there_are_read(tmp_path: Path) -> None:
    record = write_record(tmp_path / "a.jsonl", without="monitor/gold")
    assert [curve.metric for curve in read_curves(record, "a", None)] == [name for name in PANELS if "gold" not in name]
    other = tmp_path / "b.jsonl"
    other.write_text('{"step": 1, "time": 0.5, "mine": 2}\n')
    assert [curve.metric for curve in read_curves(other, "b", None)] == ["mine"]


def test_without_a_picture_each_curve_is_a_line_in_the_terminal(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["curves", "small/ppo", "small/ppo", "--labels", "a", "b", "--root", str(chain.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "run", "curve", "first", "last", "lowest", "highest", "steps"]
    assert sum("objective/kl" in line for line in lines) == 2
    for stage in ("sft", "reward_model"):
        assert main(["curves", f"small/{stage}", "--root", str(chain.root)]) == 0
        assert f"{stage}/loss" in capsys.readouterr().out


def test_blocks_rise_with_the_values_and_long_curves_are_averaged() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, None, 1.0]) == "▁ ▁"
    assert sparkline([]) == ""
    assert sparkline([1.0, 3.0] * 10 + [5.0, 7.0] * 10, columns=2) == "▁█"


def test_what_is_not_finite_is_a_gap_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    record = tmp_path / "a.jsonl"
    record.write_text('{"step": 1, "x": 0.5}\n{"step": 2, "x": "nan"}\n{"step": 3, "y": 1}\n{"step": 4, "x"')
    assert read_curves(record, "a", ["x"])[0].points == [(1, 0.5), (2, None)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/ppo", "--out", "x.svg"], "no checkpoint 'nowhere/ppo'"),
        (["a.jsonl", "--out", "x.gif"], "cannot write x.gif: its name must end in .svg or .png"),
        (["a.jsonl", "a.jsonl", "--out", "x.svg"], "2 runs need as many different labels"),
        (["bad.jsonl", "--out", "x.svg"], "bad.jsonl:1 is not JSON"),
        (["list.jsonl"], "list.jsonl:1 is not a line of metrics with a step"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "a.jsonl")
    (tmp_path / "bad.jsonl").write_text("step 1\n")
    (tmp_path / "list.jsonl").write_text("[]\n")
    assert main(["curves", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
