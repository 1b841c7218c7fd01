"""What a run prints at its end: answers, the commands that go on from there, and warnings."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain

from checkpoint_store import CheckpointStore
from pipeline.__main__ import main
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from pipeline.terminal.summary import (
    accuracy_line,
    print_next_steps,
    print_samples,
    print_summary,
    print_warnings,
    program,
)


@pytest.fixture
def signal_handler_put_back() -> Iterator[None]:
    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(threads)


def printed(chain: Chain, root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a second run prints, which has nothing to do."""
    capsys.readouterr()
    run_pipeline(load_recipe(chain.path), root)
    return capsys.readouterr().out.splitlines()


def test_the_first_three_prompts_are_shown_with_the_answers_of_both_models(
    chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (chain.checkpoint("evaluate") / "samples.jsonl").read_text().splitlines()]
    expected = [
        [name, *(text.split() or ["(empty)"])]
        for row in rows[:3]
        for name, text in (
            *(("prompt", row["prompt"]), ("SFT", row["sft"]["response"]), ("PPO", row["ppo"]["response"])),
        )
    ]
    lines = [line.split() for line in printed(chain, copy_of_chain, capsys)]
    start = lines.index(expected[0])
    assert [line for line in lines[start:] if line][:9] == expected


def test_without_an_evaluation_ppo_s_last_answers_are_shown(
    chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {name: row for name, row in chain.summary["stages"].items() if name != "evaluate"}
    store = CheckpointStore(copy_of_chain / "store")
    print_samples({"stages": stages}, store, copy_of_chain)
    shown = capsys.readouterr().out
    assert "last PPO iteration" in shown and shown.count("PPO  ") == 3 and "SFT" not in shown
    samples = copy_of_chain / "runs" / stages["ppo"]["key"] / "samples.jsonl"
    for content in (b"", b"\xff", b"[]\n", b'{"prompt": 1}\n', b'{"prompt": "a"}\n'):
        samples.write_bytes(content)
        print_samples({"stages": stages}, store, copy_of_chain)
        assert capsys.readouterr().out == ""


def test_a_long_or_hostile_answer_is_cut_and_made_visible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "k"
    folder.mkdir(parents=True)
    row = {"step": 1, "prompt": "a\x1b[31mb\nc", "response": "x" * 5000}
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    print_samples({"stages": {"ppo": {"key": "k"}}}, CheckpointStore(tmp_path / "store"), tmp_path)
    shown = capsys.readouterr().out
    assert "a\\x1b[31mb c" in shown and "\x1b" not in shown
    assert "x" * 200 in shown and "x..." in shown and "x" * 250 not in shown


def test_every_command_at_the_end_of_a_run_works_as_it_is_printed(
    chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str], signal_handler_put_back: None
) -> None:
    lines = printed(chain, copy_of_chain, capsys)
    calls = [shlex.split(line, comments=True) for line in lines[lines.index("Next:") + 1 :]][:4]
    assert [call[1] for call in calls] == ["chat", "curves", "replay", "judge"]
    assert calls[2][-4:] == ["--step", "2", "--root", str(copy_of_chain)]
    for call in calls[1:]:
        assert main(call[1:]) == 0
    assert subprocess.run([calls[0][0], "--help"], capture_output=True).returncode == 0


def test_the_default_root_is_not_repeated_and_what_is_gone_is_not_offered(
    chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_chain.rename(copy_of_chain.parent / "out")
    monkeypatch.chdir(copy_of_chain.parent)
    print_next_steps(chain.summary, Path("out"))
    assert "--root" not in capsys.readouterr().out
    Path("out/runs").rename("elsewhere")
    print_next_steps(chain.summary, Path("out"))
    shown = capsys.readouterr().out
    assert "replay" not in shown and "curves" not in shown and "chat small/ppo" in shown
    print_next_steps({"stages": {}}, Path("out"))
    assert capsys.readouterr().out == ""


def test_the_program_is_called_by_its_name_or_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert program() != "triptych"
    assert subprocess.run([*shlex.split(program()), "--help"], capture_output=True).returncode == 0


def test_a_reward_model_without_held_out_pairs_is_mentioned() -> None:
    assert accuracy_line({"pair_accuracy": None, "n": 0}).startswith("Reward model: no held-out pairs")
    numbers: dict[str, Any] = {"pair_accuracy": 0.5, "pair_accuracy_low": 0.4, "pair_accuracy_high": 0.6, "n": 51}
    assert "50.0% of 51 held-out pairs" in accuracy_line({**numbers, "longer_wins_accuracy": 0.25})


def test_a_reward_model_without_held_out_pairs_is_judged_on_a_file(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    print_next_steps({**chain.summary, "reward_model": {}}, chain.root)
    [call] = [line for line in capsys.readouterr().out.splitlines() if " judge " in line]
    assert "judge small/reward_model --data FILE --root" in call


def test_a_reward_model_that_nothing_uses_is_left_out(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(chain.summary, chain.root, uses_reward_model=True)
    assert "Reward model:" in capsys.readouterr().out
    print_summary(chain.summary, chain.root, uses_reward_model=False)
    assert "Reward model:" not in capsys.readouterr().out


def test_a_table_in_a_file_is_not_wrapped(
    chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stages = {stage: {**row, "checkpoint": "c" * 150} for stage, row in chain.summary["stages"].items()}
    print_summary({"recipe": "r", "seed": 0, "stages": stages}, chain.root)
    assert capsys.readouterr().out.count("c" * 150) == len(stages)


def test_warnings_come_last_under_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_warnings({})
    assert capsys.readouterr().out == ""
    print_warnings({"warnings": {"sft": ["one"], "ppo": ["ppo: two", "three\x1b"]}})
    assert capsys.readouterr().out.splitlines() == ["Warnings:", "  sft: one", "  ppo: two", "  ppo: three\\x1b"]
