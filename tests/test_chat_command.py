from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from small_recipe import ROOT, Chain

from pipeline.__main__ import main
from workbench.chat.command import shown


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["chat", *words, "--device", "cpu", "--max-new-tokens", "8"]) == 0
    return capsys.readouterr().out


def test_a_name_a_key_s_digits_and_a_folder_answer_the_same(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--prompt", "please name two animals", "--root", str(chain.root)]
    key = chain.summary["stages"]["ppo"]["key"]
    answers = {asked(capsys, named, *prompt) for named in ("small/ppo", key[:8], str(chain.checkpoint("ppo")))}
    assert len(answers) == 1 and answers != {"\n"}
    assert asked(capsys, "small/ppo", *prompt, "--seed", "1") not in answers


def test_a_conversation_goes_on_until_it_is_quit(
    chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("name two animals\n/new\n\nname three colours\n/quit\nmore\n"))
    printed = asked(capsys, "small/ppo", "--root", str(chain.root))
    assert printed.count("model> ") == 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("small/reward_model", "cannot answer; give one of: sft, select, ppo; to score answers, write: triptych score"),
        ("small/comparisons", "is a checkpoint of the stage comparisons and cannot answer"),
        ("small/pppo", "did you mean small/ppo?"),
    ],
)
def test_what_cannot_answer_is_said_in_one_line(
    chain: Chain, named: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", named, "--root", str(chain.root)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_answer_cannot_send_commands_to_the_terminal() -> None:
    assert shown("a\tb\nc\x1b[31m") == "a\tb\nc\\x1b[31m"


@pytest.mark.parametrize("script", ["chat.py", "plot_curves.py"])
def test_the_script_is_the_same_command(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--help"]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert "usage: triptych" in result.stdout


def test_a_model_without_a_template_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(ROOT / "assets" / "quickstart_base"), "--prompt", "dog"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
