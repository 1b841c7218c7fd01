"""The choice of the SFT checkpoint by the reward model, and what the rest of the pipeline makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_recipe import Chain, job, write_recipe
from transformers import AutoModelForCausalLM

from checkpoint_store import CheckpointStore, format_lineage
from data_schema import Prompt, read_records
from pipeline.plan import StagePlan, plan_pipeline
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.encoding import encode_prompts
from policy.language_model import load_tokenizer
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from stages.errors import ConfigError
from stages.job import prompt_hash, read_seen_prompts
from stages.select import stage as select
from stages.select.settings import SelectConfig
from stages.settings import SamplingConfig
from stages.sft.candidates import PROMPTS, read_index

CHAIN = ["sft", "comparisons", "reward_model", "select", "ppo", "evaluate"]


def plans(path: Path, root: Path, *overrides: str) -> dict[str, StagePlan]:
    store = CheckpointStore(root / "store")
    return {plan.stage: plan for plan in plan_pipeline(load_recipe(path, overrides), store)}


class Selected(NamedTuple):
    """A finished pipeline with `sft.select: reward_model`."""

    path: Path
    root: Path
    summary: dict[str, Any]

    def checkpoint(self, stage: str) -> Path:
        return self.root / "store" / "checkpoints" / self.summary["stages"][stage]["key"]


@pytest.fixture(scope="module")
def selected(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder = tmp_path_factory.mktemp("selected")
    changes = {"sft__select": "reward_model", "sft__checkpoints": 3, "sft__epochs": 0.6, "ppo__iterations": 1}
    path = write_recipe(
        folder / "small.yaml",
        chain.recipe,
        **changes,
        select__n_prompts=12,
        select__sampling__max_new_tokens=12,
        select__device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        summary = run_pipeline(load_recipe(path), folder / "out")
    return Selected(path, folder / "out", summary)


def test_the_stage_is_in_the_plan_only_where_the_recipe_asks_for_it(chain: Chain, selected: Selected) -> None:
    assert list(selected.summary["stages"]) == CHAIN
    for rule in ("last", "held_out_loss"):
        assert "select" not in plans(selected.path, selected.root, f"--sft.select={rule}")
    assert "select" in plans(chain.path, chain.root, "--sft.select=reward_model")  # without a section of its own


def test_reward_model_and_comparisons_read_the_last_checkpoint_and_ppo_and_evaluation_the_chosen(
    selected: Selected,
) -> None:
    found = plans(selected.path, selected.root)
    assert {plan.reason for plan in found.values()} == {"published"}
    key = {stage: plan.key for stage, plan in found.items()}
    assert found["comparisons"].parents["sft"] == found["reward_model"].parents["sft"] == key["sft"]
    assert found["select"].parents == {"sft": key["sft"], "reward_model": key["reward_model"]}
    assert found["ppo"].parents == {"sft": key["select"], "reward_model": key["reward_model"]}
    assert found["evaluate"].parents["sft"] == key["select"]


def test_what_is_chosen_is_the_candidate_with_the_highest_mean_score(selected: Selected) -> None:
    manifest = CheckpointStore(selected.root / "store").manifest(selected.summary["stages"]["select"]["key"])
    table = manifest.metrics["candidates"]
    candidates = read_index(selected.checkpoint("sft"))
    assert [row["step"] for row in table] == list(candidates) and len(table) == 3
    best = max(table, key=lambda row: row["reward_mean"])
    assert manifest.metrics["selected_step"] == best["step"]
    assert table[-1]["over_last"] == table[-1]["over_last_error"] == 0
    for row in table:
        assert row["over_last"] == pytest.approx(row["reward_mean"] - table[-1]["reward_mean"], abs=1e-5)
    published = AutoModelForCausalLM.from_pretrained(selected.checkpoint("select")).state_dict()
    source = AutoModelForCausalLM.from_pretrained(candidates[best["step"]]).state_dict()
    assert all(torch.equal(published[name], source[name]) for name in source)
    names = {path.name for path in selected.checkpoint("select").iterdir()}
    assert not names & {"candidates", "held_out.jsonl.gz"} and {"model.safetensors", "manifest.json"} <= names


def test_the_scores_are_the_reward_models_of_greedy_answers_sampled_by_hand(selected: Selected, tmp_path: Path) -> None:
    """Near temperature 0 sampling is greedy, so transformers' own generation says what each candidate answers."""
    sampling = SamplingConfig(max_new_tokens=6, temperature=1e-4)
    parents = {role: selected.checkpoint(role) for role in ("sft", "reward_model")}
    result = select.run(SelectConfig(n_prompts=4, sampling=sampling, device="cpu"), job(tmp_path, parents))
    tokenizer = load_tokenizer(parents["sft"])
    prompts = list(read_records(parents["sft"] / PROMPTS, Prompt))[:4]
    ids = encode_prompts(tokenizer, [prompt.prompt for prompt in prompts])
    scorer = load_scalar_model(parents["reward_model"], torch.device("cpu")).eval()
    for row, directory in zip(result.metrics["candidates"], read_index(parents["sft"]).values(), strict=True):
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        answers = []
        for prompt in ids:
            rest = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=6, do_sample=False
            )
            answers.append(rest[0, len(prompt) :].tolist())
        scores = score_responses(scorer, ids, answers, tokenizer.pad_token_id)
        assert row["reward_mean"] == pytest.approx(scores.mean().item(), abs=1e-4)
        assert row["length_mean"] == sum(map(len, answers)) / 4


def test_what_it_was_chosen_by_counts_as_seen(selected: Selected) -> None:
    prompts = list(read_records(selected.checkpoint("sft") / PROMPTS, Prompt))[:12]
    before = read_seen_prompts([selected.checkpoint("sft")])
    assert read_seen_prompts([selected.checkpoint("select")]) == before | {prompt_hash(prompt) for prompt in prompts}


def test_the_way_back_from_the_policy_tells_of_the_choice(selected: Selected) -> None:
    text = format_lineage(CheckpointStore(selected.root / "store"), "small/ppo")
    assert "small/select" in text.splitlines()[0]
    assert "selected step" in text and "parent   sft: small/select" in text
    curve = selected.root / "runs" / selected.summary["stages"]["select"]["key"] / "metrics.jsonl"
    records = [json.loads(line) for line in curve.read_text().splitlines()]
    assert [record["step"] for record in records] == list(read_index(selected.checkpoint("sft")))
    assert all("select/reward_mean" in record for record in records)


def test_a_changed_choice_redoes_what_starts_from_it_and_not_the_reward_model(selected: Selected) -> None:
    before = plans(selected.path, selected.root)
    after = plans(selected.path, selected.root, "--select.n_prompts=8")
    assert [stage for stage in before if before[stage].key != after[stage].key] == ["select", "ppo", "evaluate"]


def test_a_checkpoint_without_candidates_is_refused_with_the_cure(chain: Chain, tmp_path: Path) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    with pytest.raises(ConfigError, match=r"has no candidates; run sft again with sft\.select: reward_model"):
        select.run(SelectConfig(device="cpu"), job(tmp_path, parents))
    with pytest.raises(ConfigError, match=r"select: [01] of \d+ prompts are left \("):
        config = SelectConfig(prompts=load_recipe(chain.path).ppo.prompts, max_prompt_length=1)
        select.choosing_prompts(config, job(tmp_path, parents))
