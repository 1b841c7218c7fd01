"""Mixtures, exemplars and reasoning through the real stage, on a tiny model."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_recipe import ROOT, job, small_recipe, write_recipe

from data_schema import ChainOfThought, FewShot, Mixture, Source
from pipeline.recipe import load_recipe
from policy.language_model import load_tokenizer
from stages.errors import ConfigError
from stages.job import StageResult, prompt_hash, read_seen_prompts
from stages.sft import stage as sft
from stages.sft.demonstrations import load_demonstrations
from stages.sft.settings import SftConfig

WORDS = ("fox", "owl", "hen", "saw", "fig", "red", "lake", "dog")


@pytest.fixture
def config(small_base: Path, tmp_path: Path) -> SftConfig:
    path = write_recipe(tmp_path / "small.yaml", small_recipe(small_base))
    return replace(load_recipe(path).sft, batch_size=4, held_out=0.0)


def written(path: Path, verb: str, n_rows: int) -> Source:
    """`n_rows` demonstrations whose prompts begin with `verb`, which is their task and their reason."""
    rows = []
    for i in range(n_rows):
        words = f"{WORDS[i // 8 % 8]} {WORDS[i % 8]}"
        rows.append({"prompt": f"{verb} {words}", "completion": words, "task": verb, "rationale": f"the {verb}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def trained_prompts(config: SftConfig, folder: Path, patch: pytest.MonkeyPatch) -> tuple[list[list[str]], StageResult]:
    """-> (words of each row that was trained on, the stage's result)."""
    tokenizer, rows = load_tokenizer(config.base_model), []
    encode = sft.encode_records

    def watched(*arguments: Any) -> Any:
        encoded, dropped = encode(*arguments)
        rows.append([tokenizer.decode(row["input_ids"]).split() for row in encoded])
        return encoded, dropped

    patch.setattr(sft, "encode_records", watched)
    result = sft.run(config, job(folder))
    return rows[0], result


def test_the_stage_trains_on_the_mixture_and_writes_it_down(
    config: SftConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [written(tmp_path / "echo.jsonl", "echo", 40), written(tmp_path / "sort.jsonl", "sort", 12)]
    mixed = replace(config, data=data, mixture=Mixture(cap=16, n_rows=42))
    rows, result = trained_prompts(mixed, tmp_path / "run", monkeypatch)
    assert Counter(row[1] for row in rows) == {"echo": 24, "sort": 18}  # 16 : 12 of 42
    assert result.metrics["steps"] == 10
    account = result.data["data"]
    assert account["records"] == 42
    assert account["mixture"] == {data[0].path: {"rows": 40, "picked": 24}, data[1].path: {"rows": 12, "picked": 18}}


def test_the_stage_trains_on_exemplars_and_remembers_the_bare_prompts(
    config: SftConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [written(tmp_path / "echo.jsonl", "echo", 12), written(tmp_path / "sort.jsonl", "sort", 12)]
    shot = replace(config, data=data, few_shot=FewShot(k=2, share=1.0))
    rows, result = trained_prompts(shot, tmp_path / "run", monkeypatch)
    assert len(rows) == 24
    for row in rows:
        assert row[1] in ("echo", "sort") and row.count(row[1]) == 3
    read = load_demonstrations(shot, job(tmp_path / "other"))
    seen = read_seen_prompts([tmp_path / "run" / "output"])
    assert seen == {prompt_hash(record) for record in read.seen} and len(seen) == 24
    assert not seen & {prompt_hash(record) for record in read.train}
    assert "mixture" not in result.data["data"]


def test_held_out_demonstrations_reason_but_have_no_exemplars(config: SftConfig, tmp_path: Path) -> None:
    data = [written(tmp_path / "echo.jsonl", "echo", 60)]
    both = replace(config, data=data, held_out=0.3, few_shot=FewShot(1, 1.0), chain_of_thought=ChainOfThought())
    read = load_demonstrations(both, job(tmp_path))
    assert 0 < len(read.held_out) < 30
    for part, exemplars in ((read.train, True), (read.held_out, False)):
        assert all(record.messages[-1].content.startswith("the echo The answer is") for record in part)
        assert all(("exemplars" in record.meta) == exemplars for record in part)
    trained_on = {prompt for record in read.train for prompt in record.messages[0].content.split("\n\n")}
    assert not trained_on & {record.messages[0].content.split("\n\n")[0] for record in read.held_out}


def test_without_the_settings_what_is_trained_on_is_what_was_read(config: SftConfig, tmp_path: Path) -> None:
    from data_schema import Demonstration, load_all
    from stages.job import keep_back

    plain = replace(config, held_out=0.1)
    read = load_demonstrations(plain, job(tmp_path))
    train, held_out = keep_back(load_all(plain.data, Demonstration, 0), 0.1, 0)
    assert read.train is read.seen
    assert (read.train.fingerprint, read.held_out.fingerprint) == (train.fingerprint, held_out.fingerprint)


def test_demonstrations_that_all_say_the_same_are_told_before_training(
    config: SftConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reviews, sums = tmp_path / "reviews.jsonl", tmp_path / "sums.jsonl"
    reviews.write_text("".join(json.dumps({"prompt": f"film {i}", "completion": "bad"}) + "\n" for i in range(9)))
    sums.write_text("".join(json.dumps({"prompt": f"{i} + {i}", "completion": str(2 * i)}) + "\n" for i in range(9)))
    load_demonstrations(replace(config, data=[Source(str(reviews)), Source(str(sums))]), job(tmp_path))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert 'sft: 1 of 2 tasks (9 of 18 rows) have the same answer in all rows, such as "bad" in reviews' in told[0]


def test_a_recipe_says_it_all_in_yaml(small_base: Path, tmp_path: Path) -> None:
    data = [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 0.5, "templates": 9}]
    settings = {"mode": "weights", "cap": 3000, "by": "task"}
    recipe = write_recipe(
        tmp_path / "r.yaml",
        small_recipe(small_base),
        sft__data=data,
        sft__mixture=settings,
        sft__few_shot={"k": 3, "pattern": "instruction"},
        sft__chain_of_thought={"share": 0.5},
    )
    made = load_recipe(recipe, ["--sft.mixture.cap=100"]).sft
    assert made.mixture == Mixture(mode="weights", cap=100, by="task")
    assert made.few_shot == FewShot(k=3, pattern="instruction") and made.chain_of_thought == ChainOfThought(share=0.5)
    assert [(source.weight, source.templates) for source in made.data] == [(2, 1), (0.5, 9)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft__mixture": {"mode": "even"}}, "mixture.mode is even"),
        ({"sft__mixture": {"cpa": 3}}, "'sft.mixture' has no setting 'cpa'. Did you mean 'cap'?"),
        ({"sft__mixture": {"mode": "weights"}}, "has no weight, but mixture.mode is weights"),
        ({"sft__data": [{"path": "a", "weight": 2}]}, "sft.data: 'a' has weight 2"),
        ({"ppo__prompts": [{"path": "a", "weight": 2}]}, "ppo.prompts: 'a' has weight 2"),
        ({"sft__few_shot": {"k": 0}}, "few_shot.k must be at least 1"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(
    small_base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), **changes)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_example_of_the_page_on_mixtures_loads(small_base: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "mixtures.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)]
    assert len(examples) == 6
    write_recipe(tmp_path / "small.yaml", small_recipe(small_base))
    for rows in examples:
        (tmp_path / "example.yaml").write_text(yaml.safe_dump({"extends": "small.yaml", **rows}))
        load_recipe(tmp_path / "example.yaml")
