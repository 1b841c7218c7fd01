"""What a user can get wrong: exit code 2, one line with the cure, nothing left in the store."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_recipe import Chain, store_contents, write_recipe

from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]):
    """Runs a command that must fail, and returns its one line."""

    def failing(root: Path, *words: str) -> str:
        before = store_contents(root)
        assert main([*words, "--root", str(root)]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("triptych: ")]
        assert shown.rstrip().endswith(line)  # the last thing on the screen
        assert store_contents(root) == before
        return line

    return failing


GOOD = {"prompt": "sort these words : fox dog", "completion": "dog fox ."}
PAIR = {"prompt": "sort these words : fox dog", "chosen": "dog fox .", "rejected": "fox dog ."}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (without(GOOD, "completion"), ["rows.jsonl:2", "'completion' is missing", "fix or delete the row"]),
        ({**GOOD, "completion": ""}, ["rows.jsonl:2", "'completion'", "empty"]),
        ({**GOOD, "completion": 7}, ["rows.jsonl:2", "'completion'", "7"]),
    ],
    ids=["a field is missing", "the response is empty", "the response is no text"],
)
def test_a_bad_demonstration_is_named_by_file_row_and_field(
    chain: Chain, tmp_path: Path, complaint: Any, bad: dict[str, Any], parts: list[str]
) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", GOOD, bad, GOOD)
    line = complaint(tmp_path / "out", "run", str(chain.path), "--sft.data", rows, "--only", "sft")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        ({**PAIR, "rejected": PAIR["chosen"]}, ["rows.jsonl:2", "same", "fix or delete the row"]),
        (without(PAIR, "rejected"), ["rows.jsonl:2", "'rejected'"]),
        ({**PAIR, "chosen": " "}, ["rows.jsonl:2", "'chosen'"]),
    ],
    ids=["chosen and rejected are the same", "one is missing", "one is blank"],
)
def test_a_bad_comparison_is_named_by_file_row_and_field(
    chain: Chain, copy_of_chain: Path, tmp_path: Path, complaint: Any, bad: dict[str, Any], parts: list[str]
) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", PAIR, bad)
    line = complaint(copy_of_chain, "reward-model", "--config", str(chain.path), "--reward_model.data", rows)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--ppo.kl_coeff=0.1"], ["'ppo' has no setting 'kl_coeff'", "Did you mean 'kl_coef'?"]),
        (["--ppo.gamma=2"], ["ppo.gamma is 2", "between 0 and 1"]),
        (["--sft.epochs=0"], ["sft.epochs is 0", "it must be greater than 0"]),
        (["--ppo.iterations=many"], ["ppo.iterations is many", "a whole number"]),
        (["--only", "pppo"], ["no stage 'pppo'", "sft, comparisons, reward_model, ppo, evaluate"]),
        (["--from", "reword-model"], ["no stage 'reword-model'", "reward_model"]),
        (["--sft.data", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (
            ["--sft.data", "someone/something", "--only", "sft"],
            ["someone/something", "check the name, the split and the network", "local copy"],
        ),
        (["--sft.data", "python:no.such.module:rows"], ["no.such.module"]),
        (["--sft.base_model", "someone/some-model", "--only", "sft"], ["someone/some-model", "hf download"]),
        (["--sft.base_model", "recipes", "--only", "sft"], ["recipes", "config.json"]),
        (["--sft.base_model", "./nowhere", "--only", "sft"], ["./nowhere", "Hugging Face layout"]),
        (["--sft.template", "chatmel", "--only", "sft"], ["chatmel", "chatml"]),
        (["--sft.batch_size=1000", "--only", "sft"], ["fewer than one batch of 1000", "more data, a smaller batch"]),
        (["--sft.micro_batch_size=5", "--only", "sft"], ["sft", "not a multiple of the micro-batch of 5"]),
        (["--sft.max_length=8", "--only", "sft"], ["sft", "max_length"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_wrong_setting_is_one_line_with_the_cure(
    chain: Chain, tmp_path: Path, complaint: Any, words: list[str], parts: list[str]
) -> None:
    line = complaint(tmp_path / "out", "run", str(chain.path), *words)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("stage", "words", "parts"),
    [
        ("reward-model", ["--reward_model.batch_prompts=1000"], ["reward_model", "fewer than one batch of 1000"]),
        ("reward-model", ["--reward_model.max_length=8"], ["reward_model", "max_length"]),
        ("ppo", ["--ppo.rollout_batch=1000"], ["ppo", "fewer than one batch of 1000", "ppo.rollout_batch"]),
        ("ppo", ["--ppo.max_prompt_length=2"], ["ppo", "have at most 2 tokens"]),
        ("ppo", ["--ppo.pretraining_length=100000"], ["ppo.pretraining_length is 100000", "lower it"]),
        ("ppo", ["--ppo.monitor=data_schema.quickstart.world:judg"], ["ppo.monitor", "judg"]),
        ("ppo", ["--ppo.reward_model=small/sft"], ["not a reward model"]),
        ("ppo", ["--ppo.sft=recipes"], ["recipes", "config.json"]),
        ("comparisons", ["--comparisons.labeler=no.such:judge"], ["comparisons.labeler", "no.such:judge"]),
        ("comparisons", ["--comparisons.held_out_prompts=56"], ["comparisons.held_out_prompts is 56", "56 prompts"]),
        ("evaluate", ["--evaluate.judge=data_schema.quickstart.world"], ["evaluate.judge", "'module:function'"]),
        ("evaluate", ["--evaluate.max_prompt_length=2"], ["evaluate.prompts", "longer than 2 tokens"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0] if value[0].startswith("--") else "",
)
def test_a_stage_that_cannot_work_says_so_and_publishes_nothing(
    chain: Chain, copy_of_chain: Path, complaint: Any, stage: str, words: list[str], parts: list[str]
) -> None:
    line = complaint(copy_of_chain, stage, "--config", str(chain.path), *words)
    assert all(part in line for part in parts), line


def test_a_recipe_that_is_not_there_suggests_a_near_one(chain: Chain, tmp_path: Path, complaint: Any) -> None:
    assert f"did you mean {chain.path}?" in complaint(tmp_path, "run", str(chain.path.with_name("smal.yaml")))
    assert "no recipe is given" in complaint(tmp_path, "run")
    assert "no recipe is given" in complaint(tmp_path, "ppo")


def test_a_tokenizer_that_pads_with_its_eos_is_refused_before_training(
    chain: Chain, tmp_path: Path, complaint: Any
) -> None:
    """TRL's last PPO took one without a word: EOS fell out of every mask, and no answer learned to end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(chain.base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    AutoModelForCausalLM.from_pretrained(chain.base).save_pretrained(base)
    words = ["run", str(chain.path), "--sft.base_model", str(base), "--only", "sft"]
    line = complaint(tmp_path / "out", *words)
    assert "pads with its EOS" in line and "sft.pad_token" in line
    assert main([*words, "--sft.pad_token=<|pad|>", "--root", str(tmp_path / "out")]) == 0


TRAPS = {  # what Anthropic's HH-RLHF holds, and what each is counted as
    "prompts differ": ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d"),
    "turns do not alternate": ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"),
    "empty turn": ("\n\nHuman: \n\nAssistant: b", "\n\nHuman: \n\nAssistant: c"),
    "empty answer": ("\n\nHuman: a\n\nAssistant: ", "\n\nHuman: a\n\nAssistant: b"),
}
SAME = ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b")


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def test_hh_pairs_that_all_drop_are_an_error_that_counts_the_reasons(
    chain: Chain, copy_of_chain: Path, tmp_path: Path, complaint: Any
) -> None:
    rows = jsonl(tmp_path / "hh.jsonl", *(hh(*pair) for pair in TRAPS.values()))
    words = ["--reward_model.data", rows]
    line = complaint(copy_of_chain, "reward-model", "--config", str(chain.path), *words)
    assert "no comparisons left" in line
    assert all(f"{reason}: 1" in line for reason in TRAPS)


def test_each_trap_of_hh_is_counted_logged_and_never_trained_on(
    chain: Chain, copy_of_chain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from checkpoint_store import CheckpointStore
    from stages.job import read_seen_prompts

    good = [hh(f"\n\nHuman: fox {i}\n\nAssistant: dog", f"\n\nHuman: fox {i}\n\nAssistant: owl") for i in range(8)]
    traps = [hh(*pair) for pair in (*TRAPS.values(), SAME)]
    source = {"path": jsonl(tmp_path / "hh.jsonl", *good, *traps), "on_bad_row": "drop"}
    path = write_recipe(
        tmp_path / "hh.yaml", chain.recipe, comparisons=..., reward_model__data=source, reward_model__held_out=0
    )
    with caplog.at_level(logging.INFO, "triptych"):
        assert main(["reward-model", "--config", str(path), "--root", str(copy_of_chain)]) == 0
    store = CheckpointStore(copy_of_chain / "store")
    manifest = store.manifest(store.resolve("small/reward_model"))
    account = manifest.data["data"] if "dropped" in manifest.data["data"] else manifest.data["comparisons"]
    assert account["format"] == "hh" and account["records"] == len(good)
    assert all(account["dropped"].get(reason) == 1 for reason in TRAPS), account
    assert sum(account["dropped"].values()) == len(traps)
    assert all(f"{reason}: 1" in caplog.text for reason in TRAPS)
    assert len(read_seen_prompts([store.path(manifest.key)])) == len(good)
