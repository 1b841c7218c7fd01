from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_recipe import ROOT, STAGES, Chain, small_recipe, store_contents, write_recipe

from pipeline.__main__ import COMMANDS, guarded, main
from pipeline.recipe import load_recipe


@pytest.fixture(autouse=True)
def signal_handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_help_answers_within_a_second_and_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "--help"]
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - started)
    assert all(command in result.stdout for command in ("run", "sft", "comparisons", "reward-model", "ppo", "evaluate"))
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "datasets", "wandb", "jsonargparse", "yaml"}
    assert min(seconds) < 1


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "triptych COMMAND" in capsys.readouterr().out


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyz"]) == 2
    assert "unknown command 'xyz'; the commands are: run, sft" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_names_the_code_and_the_libraries(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("triptych ") and "commit" in shown.splitlines()[0]
    assert all(name in shown for name in ("Python 3.", "torch ", "transformers "))


def test_a_word_for_what_other_tools_do_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "my_recipe/ppo"]) == 2
    assert "a plain model folder" in capsys.readouterr().err
    for word, meant in (("env", "--version"), ("inspect", "data inspect"), ("status", "list"), ("resume", "run")):
        assert main([word]) == 2
        assert f"did you mean {meant}?" in capsys.readouterr().err


def test_help_without_a_command_is_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: triptych COMMAND" in shown
    assert all(f"\n  {command} " in shown or f"| {command} " in shown for command in COMMANDS if command != "help")


def test_a_file_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        (tmp_path / "file" / "page.html").write_text("")

    assert guarded(write) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"triptych: '{tmp_path / 'file' / 'page.html'}': Not a directory; check the path")
    assert error.count("\n") == 1


def test_run_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--from", "--ppo.kl_coef", "--sft.base_model", "--evaluate.judge"))


def test_a_printed_config_is_a_recipe_that_loads_to_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "small.yaml", small_recipe(Path("base")))
    overrides = ["--ppo.kl_coef", "0.5", "--ppo.lora.rank=4"]
    assert main(["run", str(path), *overrides, "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_recipe(printed) == load_recipe(path, overrides)


def test_a_dry_run_prints_each_stage_and_runs_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    before = store_contents(chain.root)
    assert main(["run", str(chain.path), "--root", str(chain.root), "--dry-run", "--ppo.kl_coef=0.5"]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in STAGES)
    assert shown.count("skip") == 3 and "kl_coef 0.02 -> 0.5" in " ".join(shown.split())
    assert store_contents(chain.root) == before


def test_the_log_names_the_whole_chain_oldest_first(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "small/evaluate", "--root", str(chain.root)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert sorted(first.split(" -> ")) == sorted(f"small/{stage}" for stage in STAGES)
    order = [first.index(f"small/{stage}") for stage in STAGES]
    assert order == sorted(order)


def test_verify_tells_whether_a_file_was_touched(
    chain: Chain, copy_of_chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--root", str(copy_of_chain)]) == 0
    assert capsys.readouterr().out.count("all files match their published hashes") == len(STAGES)
    weights = copy_of_chain / "store" / "checkpoints" / chain.summary["stages"]["ppo"]["key"] / "model.safetensors"
    contents = weights.read_bytes()
    weights.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    assert main(["verify", "small/ppo", "--root", str(copy_of_chain)]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_name_that_is_not_in_the_store_names_those_that_are(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "small/pppo", "--root", str(chain.root)]) == 2
    assert "small/ppo" in capsys.readouterr().err
