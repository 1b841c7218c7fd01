from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_recipe import Chain

from data_schema import Comparison, Message, write_records
from pipeline.__main__ import main
from stages.errors import ConfigError
from workbench.judge.labeler_folds import labeler_groups

WORDS = ["fox", "dog", "owl", "cat", "hen", "saw", "axe", "fig"]


def test_groups_hold_every_labeler_once_and_about_as_many_comparisons_each() -> None:
    groups = labeler_groups({"a": 50, "b": 30, "c": 25, "d": 20, "e": 10, "f": 5}, 3)
    assert sorted(name for group in groups for name in group) == list("abcdef")
    counts = {"a": 50, "b": 30, "c": 25, "d": 20, "e": 10, "f": 5}
    assert sorted(sum(counts[name] for name in group) for group in groups) == [45, 45, 50]


def test_more_groups_than_labelers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--folds is 5, but reward_model\.data names 2 labelers \(ann, bob\)"):
        labeler_groups({"ann": 3, "bob": 4}, 5)
    with pytest.raises(ConfigError, match=r"reward_model\.data names no labeler"):
        labeler_groups({}, 5)


def test_a_labeler_of_other_taste_is_met_by_models_that_never_saw_it(
    chain: Chain, copy_of_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ann and bob like the last word, cid the bear; all judge the same prompts. Models without cid are wrong of cid
    and right of their own."""
    records = [
        Comparison(
            f"{a} {b} {labeler}",
            "invented",
            (Message("user", f"repeat these words : {a} {b}"),),
            (f"{b} .", "bear ."),
            (2, 1) if labeler == "cid" else (1, 2),
            labeler=labeler,
        )
        for a in WORDS
        for b in WORDS
        for labeler in ("ann", "bob", "cid")
        if labeler != "cid" or a in WORDS[:4]
    ]
    write_records(tmp_path / "own.jsonl", records)
    recipe = json.loads(json.dumps(chain.recipe))
    recipe["reward_model"] |= {
        "data": str(tmp_path / "own.jsonl"),
        "held_out": 0.3,
        "optimizer": {"learning_rate": 3e-3},
        "normalise_on": "demonstrations",
    }
    del recipe["comparisons"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    words = ["labeler-folds", str(path), "--folds", "3", "--root", str(copy_of_chain), "--json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    told = json.loads(out[out.index("{") :])
    by_labeler = {fold["labelers"][0]: fold for fold in told["folds"]}
    assert by_labeler["cid"]["new labelers"]["pair_accuracy"] < 0.2
    assert by_labeler["cid"]["own labelers"]["pair_accuracy"] > 0.8
    assert by_labeler["ann"]["new labelers"]["n"] == by_labeler["bob"]["new labelers"]["n"]
    means = [fold["new labelers"]["pair_accuracy"] for fold in told["folds"]]
    assert told["new labelers"]["mean"] == pytest.approx(sum(means) / 3)
    for fold in told["folds"]:
        n = [fold[name]["n"] for name in ("new labelers", "own labelers")]
        assert sum(n) == sum(by_labeler["ann"][name]["n"] for name in ("new labelers", "own labelers"))

    assert main(words) == 0  # nothing is trained again
    assert "training without" not in capsys.readouterr().out


def test_a_recipe_without_named_labelers_is_refused(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labeler-folds", str(chain.path), "--root", str(chain.root)]) == 2
    assert "needs reward_model.data with named labelers" in capsys.readouterr().err
