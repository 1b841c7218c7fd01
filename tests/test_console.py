"""Control characters of data, names and settings never reach the terminal: every command shows them as text."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from data_schema.errors import UNPRINTABLE, printable
from pipeline.__main__ import main
from pipeline.terminal.console import PlainLines, as_json, screen, visible

# Clears the screen, sets the window's title, turns the text around, has no width, ends a line for some programs.
EVIL = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202eback \u2066\u200bx\ufeff\x7f\u2028 [bold]b[/bold] :smile: \U000e0041"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    handlers = logging.getLogger().handlers[:]
    yield
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().handlers[:] = handlers


def test_what_cannot_be_printed_becomes_an_escape_and_the_rest_stays() -> None:
    assert printable("a\x1b\x9b\u202e\U000e0041\ud800") == "a\\x1b\\x9b\\u202e\\U000e0041\\ud800"
    for text in ("ümläut\n今天\t√", "", "plain", "نص", "👍🏽"):
        assert printable(text) == text
    assert visible("a\tb\nc") == "a\\tb\\nc"
    assert not UNPRINTABLE.search(printable("".join(map(chr, range(0x110000)))))


def test_the_screen_takes_data_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    screen().print(table)
    screen().print(EVIL)
    shown = capsys.readouterr().out
    assert not UNPRINTABLE.search(shown)
    assert shown.count("\\x1b[2J") == 4 and shown.count("[bold]b[/bold] :smile:") == 4


def test_json_and_log_lines_are_harmless_and_json_keeps_its_value() -> None:
    line = as_json({EVIL: [EVIL]})
    assert line.isascii() and line.isprintable() and json.loads(line) == {EVIL: [EVIL]}
    record = logging.LogRecord("triptych", logging.INFO, "", 0, "read %s", (EVIL,), None)
    assert not UNPRINTABLE.search(PlainLines("%(message)s").format(record))


@pytest.fixture
def evil_file(tmp_path: Path) -> Path:
    path = tmp_path / f"{EVIL.replace('/', '')}.jsonl"
    rows = [
        {"prompt": f"{EVIL} {i}", "completion": f"{EVIL} {i}" if i % 3 else "", EVIL: EVIL, "group": EVIL}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def commands(path: Path, folder: Path) -> list[list[str]]:
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    root = ["--root", str(folder / "out")]
    return [
        ["data", "inspect", str(path), "--rows", "3"],
        ["data", "inspect", str(path), "--rows", "3", "--json"],
        ["data", "inspect", str(path), "--kind", "comparisons"],
        ["data", "inspect", EVIL],
        ["data", "inspect", f"./{EVIL}.jsonl"],
        [EVIL],
        ["run", EVIL],
        ["run", quickstart, f"--{EVIL}"],
        ["run", quickstart, "--sft.data", str(path), "--dry-run", *root],
        ["run", quickstart, "--sft.data", str(path), "--print_config"],
        ["run", quickstart, "--name", EVIL, "--dry-run", *root],
        ["run", quickstart, "--sft.template", EVIL, "--dry-run", *root],
        ["run", quickstart, "--only", EVIL, *root],
        ["judge", EVIL, *root],
        ["score", EVIL, str(path), *root],
        ["replay", EVIL, "--step", "1", *root],
        ["log", EVIL, *root],
        ["verify", EVIL, *root],
        ["sweep", quickstart, "--over", f"sft.epochs={EVIL}", *root],
        ["evaluate-tasks", "--models", f"{EVIL}={EVIL}", "--tasks", str(path), *root],
    ]


@pytest.mark.parametrize("number", range(20))
def test_no_command_lets_a_control_character_through(
    number: int, evil_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    logging.getLogger().handlers[:] = []  # so that the command sets up its own
    words = commands(evil_file, tmp_path)[number]
    main(words)
    shown = capfd.readouterr()
    text = shown.out + shown.err
    found = UNPRINTABLE.search(text)
    assert found is None, (words[:2], ascii(text[max(0, found.start() - 80) : found.end() + 40]))
    shown_as = ("x1b", "u001b", "has control characters")
    assert any(form in text for form in shown_as), (words[:2], text[-300:])  # it was to be shown
    assert "Traceback" not in text
