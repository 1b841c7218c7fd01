from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from small_recipe import JUDGE, WORLD, Chain
from transformers import AutoModelForSequenceClassification

from data_schema import Comparison, Message, read_records, write_records
from pipeline.__main__ import main
from policy.encoding import encode_answers
from policy.language_model import load_tokenizer
from stages.comparisons.stage import HELD_OUT_FILE, TRAIN_FILE
from workbench.judge.command import JSON_FILE, PAGE_FILE, add_votes

WORDS = ["fox", "dog", "owl", "cat", "hen", "saw", "axe", "fig", "pear", "lime", "bear", "crab"]


def judge(chain: Chain, out: Path, *words: str) -> dict[str, Any]:
    """The numbers of a call that must end well."""
    command = ["judge", "small/reward_model", "--root", str(chain.root), "--out", str(out), "--device", "cpu", *words]
    assert main(command) == 0
    told: dict[str, Any] = json.loads((out / JSON_FILE).read_text())
    return told


def comparison(number: int, responses: list[str], ranks: list[int], **said: Any) -> Comparison:
    prompt = (Message("user", f"repeat these words : {WORDS[number % 12]} {WORDS[number // 12]}"),)
    return Comparison(f"c{number}", "invented", prompt, tuple(responses), tuple(ranks), **said)


def written(path: Path, records: list[Comparison]) -> str:
    write_records(path, records)
    return str(path)


def test_without_data_it_is_judged_on_what_its_training_kept_back(chain: Chain, tmp_path: Path) -> None:
    told = judge(chain, tmp_path)
    stage = chain.summary["reward_model"]
    for name in ("n", "pair_accuracy", "pair_accuracy_low", "pair_accuracy_high", "longer_wins_accuracy"):
        assert told[name] == pytest.approx(stage[name]), name
    directory = chain.checkpoint("reward_model")
    tokenizer, model = load_tokenizer(directory), AutoModelForSequenceClassification.from_pretrained(directory).eval()
    right = n = 0
    for record in read_records(chain.checkpoint("comparisons") / HELD_OUT_FILE, Comparison):
        prompt, answers = encode_answers(tokenizer, record.prompt, record.responses)
        with torch.no_grad():
            scores = [model(input_ids=torch.tensor([prompt + answer])).logits[0, 0].item() for answer in answers]
        pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if record.ranks[i] < record.ranks[j]]
        right, n = right + sum(scores[i] > scores[j] for i, j in pairs), n + len(pairs)
    assert (told["n"], told["pair_accuracy"]) == (n, pytest.approx(right / n))


def test_what_training_kept_back_of_a_file_is_found_again_until_the_file_changes(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, root = tmp_path / "pairs.jsonl", tmp_path / "out"
    written(data, [comparison(i, [f"{WORDS[i % 12]} .", "no ."], [1, 2]) for i in range(60)])
    rows = {"data": str(data), "held_out": 0.3, "sft": str(chain.checkpoint("sft")), "device": "cpu"}
    settings = {"batch_prompts": 8, "max_length": 64, "normalise_on": "policy_samples"}
    recipe = tmp_path / "file.yaml"
    recipe.write_text(
        yaml.safe_dump({"name": "file", "tracking": {"wandb": "disabled"}, "reward_model": rows | settings})
    )
    assert main(["reward-model", "--config", str(recipe), "--root", str(root)]) == 0
    command = ["judge", "file/reward_model", "--root", str(root), "--device", "cpu"]
    assert main(command) == 0
    judged = json.loads((root / "judgements" / "file" / "reward_model" / JSON_FILE).read_text())
    assert judged["n"] == 18
    written(data, [comparison(0, ["a .", "b ."], [1, 2])])
    assert main(command) == 2
    data.unlink()
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert "the data of file/reward_model changed since its training; give comparisons with --data" in errors
    assert "pairs.jsonl: no such file" in errors and "give comparisons with --data" in errors.splitlines()[-1]


def test_the_manifest_holds_the_stage_s_own_judgement(chain: Chain) -> None:
    metrics = json.loads((chain.checkpoint("reward_model") / "manifest.json").read_text())["metrics"]
    judged = metrics["judgement"]
    assert sum(row["n"] for row in judged["reliability"]) == metrics["n"]
    assert sum(row["n"] for row in judged["by_rank_distance"]) == metrics["n"]
    assert {"temperature", "calibration_error", "shorter_wins_accuracy", "length_correlation"} <= judged.keys()


def test_pairs_are_told_apart_by_source_labeler_subset_and_margin(chain: Chain, tmp_path: Path) -> None:
    records = [
        comparison(
            i,
            [f"{WORDS[i % 12]} .", "bear ."],
            [1, 2],
            labeler="ann" if i % 3 else "bob",
            margin=float(i % 2 + 1),
            meta={"subset": "easy" if i < 12 else "hard"},
        )
        for i in range(24)
        if i % 12 != 10
    ]
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(
            json.dumps({"prompt": f"name one of {word}", "chosen": "dog .", "rejected": "cat .", "subset": "chat"})
            + "\n"
            for word in WORDS
        )
    )
    told = judge(chain, tmp_path / "out", "--data", written(tmp_path / "own.jsonl", records), str(other))
    counts = {name: {row["name"]: row["n"] for row in told[name]} for name in told if name.startswith("by_")}
    assert counts["by_source"] == {"invented": 22, str(other): 12}
    assert counts["by_labeler"] == {"ann": 14, "bob": 8}
    assert counts["by_subset"] == {"chat": 12, "easy": 11, "hard": 11}
    assert counts["by_margin"] == {"1": 10, "2": 12}
    assert told["mean_over_subsets"] == pytest.approx(sum(row["rate"] for row in told["by_subset"]) / 3)
    assert sum(counts["by_source"].values()) == told["n"]


def test_prompts_it_was_trained_on_are_left_out_and_counted(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = list(read_records(chain.checkpoint("comparisons") / TRAIN_FILE, Comparison))[:5]
    fresh = [comparison(i, ["dog .", "cat ."], [1, 2]) for i in range(3)]
    told = judge(chain, tmp_path / "out", "--data", written(tmp_path / "mixed.jsonl", [*trained, *fresh]))
    assert told["n"] == 3 and told["data"]["dropped"] == {"trained on": 5}
    capsys.readouterr()
    only = written(tmp_path / "trained.jsonl", trained)
    assert main(["judge", "small/reward_model", "--root", str(chain.root), "--data", only]) == 2
    assert "was trained on the prompts of all 5 comparisons" in capsys.readouterr().err


def test_ties_and_texts_the_model_has_no_positions_for_are_left_out_and_counted(chain: Chain, tmp_path: Path) -> None:
    records = [
        comparison(0, ["dog .", "cat ."], [1, 2]),
        comparison(1, ["dog .", "cat ."], [1, 1]),
        comparison(2, ["dog " * 200, "cat ."], [1, 2]),
    ]
    told = judge(chain, tmp_path / "out", "--data", written(tmp_path / "own.jsonl", records))
    assert (told["n"], told["left_out"]) == (1, {"all answers tie": 1, "too long": 1})


def test_votes_on_one_pair_meet_whichever_way_round_the_answers_stand() -> None:
    votes: dict[bytes, dict[str, float]] = {}
    add_votes(votes, comparison(0, ["dog .", "cat ."], [1, 2], labeler="ann"))
    add_votes(votes, comparison(0, ["cat .", "dog ."], [2, 1], labeler="bob"))
    add_votes(votes, comparison(0, ["cat .", "dog ."], [1, 1], labeler="cid"))
    add_votes(votes, comparison(0, ["cat .", "dog ."], [1, 2]))
    add_votes(votes, comparison(1, ["dog .", "cat ."], [2, 1], labeler="ann"))
    (several,) = (item for item in votes.values() if len(item) > 1)
    assert several["ann"] == several["bob"] != 0 == several["cid"]
    assert len(votes) == 2


def test_labelers_agreement_stands_beside_the_model_s(chain: Chain, tmp_path: Path) -> None:
    records = [
        comparison(i, ["dog .", "cat ."], [1, 2] if labeler == "ann" or i < 6 else [2, 1], labeler=labeler)
        for i in range(8)
        for labeler in ("ann", "bob")
    ]
    told = judge(chain, tmp_path / "out", "--data", written(tmp_path / "own.jsonl", records))
    assert (told["agreement"]["items"], told["agreement"]["raw_agreement"]) == (8, 6 / 8)


def test_fresh_answers_of_a_policy_are_ordered_by_the_judge(chain: Chain, tmp_path: Path) -> None:
    words = ["--policy", "small/ppo", "--prompts", f"{WORLD}:prompts", "--judge", JUDGE, "--split", "test"]
    told = judge(chain, tmp_path, *words, "--n-prompts", "24", "--max-new-tokens", "12")
    fresh = told["fresh"]
    assert fresh["n"] > 0 and -1 <= fresh["gold_correlation"] <= 1
    assert fresh["n_prompts"] + sum(fresh["left_out"].values()) == 24


def test_the_page_is_one_file_whose_plots_are_drawn_and_which_loads_nothing(chain: Chain, tmp_path: Path) -> None:
    judge(chain, tmp_path)
    page = (tmp_path / PAGE_FILE).read_text()
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert len(plots) == 2
    assert all(plot.findall(".//{http://www.w3.org/2000/svg}polyline") for plot in plots)
    assert not re.search(r"<(script|link|img)|href=|src=|@import", page)


def test_evaluate_with_a_model_names_the_command_that_judges_it(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "small/reward_model", "--root", str(chain.root), "--json"]) == 2
    assert f"write: triptych judge small/reward_model --root {chain.root} --json" in capsys.readouterr().err


def test_a_policy_s_folder_is_refused_with_the_commands_that_fit(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(chain.checkpoint("ppo"), folder)
    assert main(["judge", str(folder), "--data", "x.jsonl"]) == 2
    error = capsys.readouterr().err
    assert f"'{folder}' is a policy, not a reward model; to talk to it, write: triptych chat {folder}" in error
    assert main(["judge", "small/comparisons", "--root", str(chain.root)]) == 2
    assert "is a checkpoint of the stage comparisons, which holds no model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["small/sft"], "'small/sft' is a policy, not a reward model"),
        (["small/reward"], "'small/reward' is not a directory, and: no checkpoint 'small/reward'"),
        (["small/reward_model", "--policy", "small/ppo"], "need all three: --policy"),
        (["small/reward_model", "--batch-size", "0"], "--batch-size is 0; it must be a whole number, at least 1"),
        (["small/reward_model", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(
    chain: Chain, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", *words, "--root", str(chain.root)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert told in errors[-1] and errors[-1].startswith("triptych: ")
