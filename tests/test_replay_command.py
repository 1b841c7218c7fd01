"""`triptych replay`: the same losses again from the record, what was tampered with found, tokens with what they were
worth."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_recipe import Chain, write_recipe

from pipeline.__main__ import main
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from workbench.replay.command import ranges


@pytest.fixture(autouse=True)
def handlers_and_threads_put_back() -> Iterator[None]:
    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of three iterations of two inner epochs, with adapters, text, rates that move and one
    snapshot."""
    folder = tmp_path_factory.mktemp("replay")
    root = Path(shutil.copytree(chain.root, folder / "out"))
    changes: dict[str, Any] = {"iterations": 3, "inner_epochs": 2, "kl_target": 1.0, "snapshot_every": 2}
    changes["lora"] = {"rank": 4}
    path = write_recipe(
        folder / "r.yaml",
        {key: value for key, value in chain.recipe.items() if key != "evaluate"},
        ppo__optimizer={"learning_rate": 1e-3, "schedule": "linear", "eps": 1e-5},
        **{f"ppo__{name}": value for name, value in changes.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        summary = run_pipeline(load_recipe(path), root)
    return root / "runs" / summary["stages"]["ppo"]["key"]


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """To be tampered with; its parents are found where they were."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """-> (exit code, what was printed)."""
    capsys.readouterr()
    code = main(["replay", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def recorded_lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def change_tensor(path: Path, name: str, place: int, value: float) -> None:
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors[name][place] = value
    save_file(tensors, path, about)


@pytest.mark.parametrize("snapshot", [True, False])
def test_every_loss_of_a_later_iteration_comes_back_bit_for_bit(
    copied: Path, capsys: pytest.CaptureFixture[str], snapshot: bool
) -> None:
    if not snapshot:
        shutil.rmtree(copied / "snapshots")
    code, told = replayed(capsys, str(copied), "--step", "3", "--episodes", "0")
    assert code == 0 and told["equal"] and told["difference"] is None
    assert told["began_after"] == (2 if snapshot else 0)
    line = recorded_lines(copied)[2]
    losses = [name for name in line if name.startswith(("policy/", "value/", "objective/", "reward/"))]
    assert len(losses) > 20
    assert {name: told["metrics"][name] for name in losses} == {name: line[name] for name in losses}
    # Four minibatches of eleven numbers an iteration, with the stop that was none, and the line of the record.
    assert told["compared"] == (1 if snapshot else 3) * (4 * 11 + 1 + len(losses))


def test_whole_models_come_back_too(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    directory = chain.root / "runs" / chain.summary["stages"]["ppo"]["key"]
    code, told = replayed(capsys, str(directory), "--step", "2", "--episodes", "0")
    assert code == 0 and told["equal"] and told["compared"] > 60
    assert told["metrics"]["policy/loss"] == recorded_lines(directory)[1]["policy/loss"]


@pytest.mark.parametrize(
    ("file", "tensor", "value", "place"),
    [
        ("000003", "tokens/advantages", 5.0, (3, 1, "policy/loss")),
        ("000003", "tokens/returns", 5.0, (3, 1, "value/loss")),
        ("000003", "parts/reward_model", 5.0, (3, None, "reward/reward_model")),
        ("000001", "text", 9, (1, 1, "policy/pretraining_loss")),
    ],
)
def test_the_first_number_that_differs_is_named_and_the_exit_code_is_1(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    tensor: str,
    value: float,
    place: tuple[int, int | None, str],
) -> None:
    shutil.rmtree(copied / "snapshots")
    path = copied / "rollouts" / f"{file}.safetensors"
    with safe_open(path, "pt") as opened:
        [order, *_] = opened.get_tensor("orders").tolist()
        lengths = opened.get_tensor("lengths").tolist()
    # The first token of the first episode in the first minibatch, or all that the first minibatch read of the text.
    where = 0 if tensor in ("text", "parts/reward_model") else sum(lengths[: order[0]])
    change_tensor(path, tensor, where, value)
    code, told = replayed(capsys, str(copied), "--step", "3", "--episodes", "0")
    different = told["difference"]
    assert code == 1 and not told["equal"]
    assert (different["iteration"], different["minibatch"], different["name"]) == place
    assert different["recorded"] != different["replayed"]


def test_a_changed_number_in_the_record_of_metrics_is_found(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = recorded_lines(copied)
    lines[1]["value/loss"] *= 1 + 1e-15
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, told = replayed(capsys, str(copied), "--step", "2")
    assert code == 1
    assert told["difference"]["name"] == "value/loss" and told["difference"]["recorded"] == lines[1]["value/loss"]
    assert main(["replay", str(copied), "--step", "2"]) == 1
    assert f"value/loss was {lines[1]['value/loss']!r} and is now" in " ".join(capsys.readouterr().out.split())


def test_a_stop_comes_back_at_the_same_minibatch(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Limits that an ordinary run does not meet, so the stop's numbers are ordinary too."""
    root = Path(shutil.copytree(chain.root, tmp_path / "out"))
    words = ["ppo", "--config", str(chain.path), "--root", str(root), "--ppo.kl_coef=0.3"]
    assert main([*words, "--ppo.max_approx_kl=1e-9"]) == 2
    told = capsys.readouterr().err
    assert "iteration 1, minibatch 2: policy/approx_kl is" in told
    directory, step = told.split("triptych replay ")[1].split(" --step ")
    code, found = replayed(capsys, directory, "--step", step.strip(), "--episodes", "3")
    assert code == 0 and found["equal"] and found["stopped"]
    assert len(found["steps"]) == 1 and found["compared"] == 11 + 1
    assert [episode["episode"] for episode in found["episodes"]] == sorted(found["at_fault"])[:3]
    # Run again without the limit, the stopped try's record moves aside and can still be looked at.
    assert main(words) == 0
    code, found = replayed(capsys, f"{directory}/before-1", "--step", "1")
    assert code == 0 and found["stopped"]


def test_a_tokens_reward_is_its_kl_penalty_and_the_score_at_the_end(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = replayed(capsys, str(trained), "--step", "2", "--show-only", "--episodes", "16")
    assert told["equal"] is None and told["compared"] == 0
    line = recorded_lines(trained)[1]
    assert len(told["episodes"]) == 16
    for episode in told["episodes"]:
        rewards = [token["reward"] for token in episode["tokens"]]
        assert sum(rewards) == pytest.approx(episode["score"] - told["kl_coef"] * episode["kl"], abs=1e-5)
        assert rewards[:-1] == pytest.approx([-told["kl_coef"] * token["kl"] for token in episode["tokens"][:-1]])
        assert episode["ended"] == (episode["tokens"][-1]["token"] == "<eos>")
    scores = [episode["score"] for episode in told["episodes"]]
    assert sum(scores) / 16 == pytest.approx(line["objective/score"])
    for pick, expected in (("best", sorted(scores, reverse=True)), ("worst", sorted(scores))):
        _, told = replayed(capsys, str(trained), "--step", "2", "--show-only", "--pick", pick, "--episodes", "2")
        assert [episode["score"] for episode in told["episodes"]] == expected[:2]


def test_the_table_shows_the_prompt_and_every_token(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, told = replayed(capsys, str(trained), "--step", "1", "--show-only", "--pick", "kl", "--episodes", "1")
    [episode] = told["episodes"]
    assert main(["replay", str(trained), "--step", "1", "--pick", "kl", "--episodes", "1"]) == 0
    shown = capsys.readouterr().out
    assert "equal bit for bit" in " ".join(shown.split())
    assert episode["prompt"] in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("'")] == [
        repr(token["token"]) for token in episode["tokens"]
    ]


def test_a_name_a_key_s_digits_and_a_checkpoint_s_folder_find_the_run(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    key = chain.summary["stages"]["ppo"]["key"]
    words = ["--step", "1", "--show-only", "--episodes", "0", "--root", str(chain.root)]
    found = [replayed(capsys, named, *words) for named in ("small/ppo", key[:8], str(chain.checkpoint("ppo")))]
    assert [code for code, _ in found] == [0] * 3
    assert {told["run"] for _, told in found} == {str(chain.root / "runs" / key)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--step", "0"], "--step is 0; it must be a whole number, at least 1"),
        (["--step", "9"], "has no iteration 9; recorded are 1 to 3;"),
    ],
)
def test_a_step_that_is_not_there_is_told_in_a_line(
    trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["replay", str(trained), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_directory_that_is_no_ppo_run_is_told(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    directory = chain.root / "runs" / chain.summary["stages"]["sft"]["key"]
    assert main(["replay", str(directory), "--step", "1"]) == 2
    assert "has no recorded iterations" in capsys.readouterr().err
    assert main(["replay", "small/reward_model", "--step", "1", "--root", str(chain.root)]) == 2
    assert "give a PPO stage: its name" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"config": {}, "parents": []}'])
def test_a_damaged_description_of_the_run_is_one_line(
    copied: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "rollouts" / "run.json").write_text(content)
    assert main(["replay", str(copied), "--step", "1"]) == 2
    error = capsys.readouterr().err
    assert "run.json cannot be read" in error and error.count("\n") == 1


def test_a_damaged_record_of_metrics_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "metrics.jsonl").write_text('{"step": 1, "value/loss": []}\n')
    assert main(["replay", str(copied), "--step", "1"]) == 2
    assert "has a value that is no number at step 1" in capsys.readouterr().err


def test_steps_are_written_as_ranges() -> None:
    assert ranges([1, 2, 3, 5, 7, 8]) == "1 to 3, 5, 7 to 8"
