"""Mistakes on the command line: one line, exit code 2, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.__main__ import COMMANDS, main
from pipeline.terminal.arguments import Arguments, count, plain, seed
from stages.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu", "r.yaml"], "unknown command 'rnu'; did you mean run?"),
        (["lst"], "did you mean list?"),
        (["eval"], "did you mean evaluate?"),
        (["delete", "a/ppo"], "did you mean rm?"),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["--root", "out", "list"], "unknown option --root; options come after the command"),
        (["recipes/quickstart.yaml"], "to run it, write: triptych run recipes/quickstart.yaml"),
        (["run", "r.yaml", "--dryrun"], "run: unknown option --dryrun; did you mean --dry-run?"),
        (["run", "r.yaml", "--sede", "1"], "run: unknown option --sede; did you mean --seed?"),
        (["run", "r.yaml", "-dry-run"], "run: unknown option -dry-run"),
        (["run", "a.yaml", "b.yaml"], "run: 'b.yaml' is one word too many"),
        (["ppo", "a.yaml", "--config", "b.yaml"], "two recipes are given, 'a.yaml' and 'b.yaml'"),
        (["run", "--from", "ppo", "--only", "sft", "r.yaml"], "--from ppo and --only sft exclude each other"),
        (["evaluate", "quickstart/reward_model"], "write: triptych judge quickstart/reward_model"),
        (["judge", "a/reward_model", "--dta", "x"], "judge: unknown option --dta; did you mean --data?"),
        (["judge"], "judge: model is missing; 'triptych judge --help' lists the options"),
        (["judge", "m", "--batch-size", "0"], "--batch-size is 0; it must be a whole number, at least 1"),
        (["judge", "m", "--seed", str(2**32)], "must be a whole number from 0 to 4294967295"),
        (["score", "m", "f", "--devise", "cpu"], "did you mean --device?"),
        (["score", "m", "f", "--device", "gpu"], "--device is 'gpu'; it must be one of auto, cpu, cuda"),
        (["replay", "a/ppo"], "replay: --step is missing"),
        (["replay", "a/ppo", "--step"], "replay: --step has no value"),
        (["plan", "r.yaml", "--no-tim"], "plan: unknown option --no-tim; did you mean --no-time?"),
        (["sweep", "r.yaml", "--ovr", "a=b"], "did you mean --over?"),
        (["labeler-folds", "r.yaml", "--fold", "2"], "did you mean --folds?"),
        (["evaluate-tasks", "--model", "a=b"], "did you mean --models?"),
        (["data"], "data: write 'triptych data inspect SOURCE'"),
        (["data", "inspect", "f", "--tokeniser", "m"], "did you mean --tokenizer?"),
        (["chat", "m", "--temperature", "hot"], "--temperature is hot; it must be a number above 0"),
        (["list", "--jsn"], "did you mean --json?"),
        (["curves"], "curves: MODEL is missing"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_that_says_what_was_probably_meant(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("triptych: ") and printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("help", "data")])
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: triptych {command}" in shown
    assert main(["help", command]) == 0
    assert capsys.readouterr().out == shown


def test_underscores_in_a_command_are_as_good_as_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward_model"]) == 2
    assert "triptych reward-model --config RECIPE" in capsys.readouterr().err


def test_a_setting_s_value_is_not_mistaken_for_the_recipe() -> None:
    parser = Arguments("run", recipe_settings=("seed",))
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--force", action="store_true")
    words = ["--ppo.kl_coef", "0.1", "--seed", "3", "r.yaml", "--force", "--sft.data=a.jsonl", "--ppo.x", "-1"]
    options, overrides = parser.parse_with_settings(words)
    assert (options.recipe, options.force) == ("r.yaml", True)
    assert overrides == ["--ppo.kl_coef", "0.1", "--seed", "3", "--sft.data=a.jsonl", "--ppo.x", "-1"]


def test_a_command_s_own_option_takes_precedence_over_a_setting_of_the_same_name() -> None:
    parser = Arguments("sweep", recipe_settings=("name", "seed"))
    parser.add_argument("--name")
    assert parser.parse_with_settings(["--name", "x", "--seed", "1"]) == (
        parser.parse_args(["--name", "x"]),
        ["--seed", "1"],
    )


def test_argparse_s_messages_lose_python_s_names_of_types() -> None:
    assert plain("argument --n: invalid int value: 'x'") == "--n is 'x'; it must be a whole number"
    assert plain("argument --n: invalid float value: 'x'") == "--n is 'x'; it must be a number"
    with pytest.raises(ConfigError, match=r"^a: --n is 'x'; it must be a whole number; 'triptych a --help'"):
        parser = Arguments("a")
        parser.add_argument("--n", type=int)
        parser.parse_args(["--n", "x"])


@pytest.mark.parametrize("text", ["-1", "1.5", "", "٣", "9" * 20])
def test_a_seed_and_a_count_are_plain_whole_numbers(text: str) -> None:
    parser = Arguments("a")
    parser.add_argument("--seed", type=seed)
    parser.add_argument("--n", type=count)
    for option in ("--seed", "--n"):
        with pytest.raises(ConfigError, match="must be a whole number"):
            parser.parse_args([f"{option}={text}"])
