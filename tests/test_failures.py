"""What a failing command says: which errors are one line, and what precedes the traceback of a bug."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_recipe import ROOT

from pipeline.terminal.failures import guarded


class SafetensorError(Exception):
    """As the library's own: no number, only text."""


def raising(error: BaseException, note: str | None = None) -> Callable[[], None]:
    if note is not None:
        error.add_note(note)

    def action() -> None:
        raise error

    return action


def wrapped(error: BaseException) -> BaseException:
    """As a library raises it again, with its own type."""
    try:
        try:
            raise error
        except BaseException as cause:
            raise RuntimeError("could not save") from cause
    except RuntimeError as outer:
        return outer


DISK = "finished stages are kept, and the same command continues after them"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.json"), "the disk is full ('a/b.json')"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "no room left for you (quota)"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk is full"),
        (Exception("File too large (os error 27)"), "allows no larger file"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
        (MemoryError(), "not enough memory (Python could not get more)"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "'triptych plan RECIPE' predicts PPO's"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "'x/y': Permission denied; check the path"),
        (FileExistsError(errno.EEXIST, "File exists", "x", None, "y"), "'x' -> 'y': File exists"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_full_disk_and_too_little_memory_are_one_line(
    error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("triptych: ") and shown.count("\n") == 1
    assert message in shown
    assert (DISK in shown) == (("disk " in shown or "memory" in shown) and "check the path" not in shown)


def test_the_line_names_the_stage_and_its_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        guarded(raising(OSError(errno.ENOSPC, "No space left on device"), "stage ppo, run directory out/runs/1")) == 2
    )
    assert "stage ppo, run directory out/runs/1" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_after_a_line_that_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError):
        guarded(raising(KeyError("loss"), "stage sft, run directory out/runs/2"))
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    for part in ("this is a bug in triptych", "stage sft, run directory out/runs/2.", DISK, "triptych --version"):
        assert part in shown


def test_an_error_met_on_the_way_to_a_bug_does_not_hide_it(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        try:
            Path("nowhere").read_text()
        except FileNotFoundError:
            raise TypeError("a bug") from None

    with pytest.raises(TypeError):
        guarded(action)
    assert "this is a bug" in capsys.readouterr().err


def test_control_characters_of_a_message_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from stages.errors import ConfigError

    assert guarded(raising(ConfigError("name is '\x1b[31mred\u202e'\nsecond line"))) == 2
    assert capsys.readouterr().err == "triptych: name is '\\x1b[31mred\\u202e' second line\n"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["list", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_gets_no_traceback(words: list[str]) -> None:
    command = [sys.executable, "-m", "pipeline", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 141)  # argparse swallows the error when it prints help


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_that_finds_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 2
    assert "the disk is full" in result.stderr and result.stderr.count("\n") == 1
