from __future__ import annotations

import sys
from io import StringIO

import pytest
from tqdm import tqdm

from stages import progress as module
from stages.progress import PlainProgress, progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress(range(3), desc="ppo", unit="iteration")
    assert isinstance(bar, tqdm) and list(bar) == [0, 1, 2]


def test_in_a_file_every_state_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(1000), desc="ppo", unit="iteration")) == list(range(1000))
    shown = capsys.readouterr().err
    assert shown == "ppo: 1000 of 1000 iterations in 00:00\n"


def test_a_line_is_written_only_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = StringIO()
    bar = PlainProgress(None, "score", "row", 40, 10, stream)
    for _ in range(30):
        now[0] += 7
        bar.set_postfix(loss="0.5")
        bar.update(1)
    bar.close()
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "score: 15 of 40 rows in 00:35, 02:55 left, loss 0.5"
    assert len(lines) == 30 // 5 + 1
    assert lines[-1] == "score: 40 of 40 rows in 03:30, loss 0.5"
    assert "\r" not in stream.getvalue()


def test_a_bar_without_a_total_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(desc="judge", unit="comparison") as bar:
        bar.update(12)
    assert capsys.readouterr().err == "judge: 12 comparisons in 00:00\n"
