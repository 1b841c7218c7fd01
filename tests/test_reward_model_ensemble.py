"""Reward models that share a backbone, and what labels may say beyond an order, through the reward-model stage."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from small_recipe import job, small_recipe, write_recipe
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from data_schema import Comparison, Message, write_records
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from policy.adapters import add_lora
from policy.encoding import encode_answers
from policy.errors import ModelError
from policy.language_model import load_tokenizer, save_checkpoint
from policy.sampling.rollout import Rollout, as_rollout
from reward.ensemble import acting_as, combine, member_scores, read_members, relative_to
from reward.normalisation import RewardNormalisation
from reward.scalar_model import from_language_model, load_scalar_model, response_scores
from reward.sources import score_rollout
from stages.errors import ConfigError
from stages.ppo import stage as ppo
from stages.ppo.reward_settings import RewardPart
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import load_roles
from stages.reward_model import stage as reward_model
from stages.reward_model.ensemble import trained_member
from stages.reward_model.settings import LabelConfig
from stages.reward_model.trainer import Ranking, RankingCollator, merge_labelers
from stages.settings import LoraConfig, OptimizerConfig
from workbench.judge.scorer import Scored, open_scorer, score_answers

CPU = torch.device("cpu")


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


WORDS = ["fox", "dog", "owl", "cat", "hen", "saw", "axe", "fig"]
N = 3


def comparisons(**fields: Any) -> list[Comparison]:
    """The second word repeated is better than another word."""
    return [
        Comparison(
            f"{a}{b}",
            "test",
            prompt=(Message("user", f"repeat these words : {a} {b}"),),
            responses=(f"{b} .", f"bear {b}", "."),
            ranks=(1, 2, 2),
            **fields,
        )
        for a in WORDS
        for b in WORDS
    ]


class Trained(NamedTuple):
    directory: Path
    records: list[dict[str, float]]
    metrics: dict[str, Any]


def train(base: Path, folder: Path, records: list[Comparison], **changes: Any) -> Trained:
    folder.mkdir(exist_ok=True)
    write_records(folder / "comparisons.jsonl", records)
    recipe = load_recipe(write_recipe(folder / "r.yaml", small_recipe(base)))
    settings = {"batch_prompts": 8, "held_out": 0.3, "lora": LoraConfig(rank=2, alpha=8)} | changes
    config = replace(
        recipe.reward_model,
        data=[Source(str(folder / "comparisons.jsonl"))],
        optimizer=OptimizerConfig(learning_rate=1e-2),
        **settings,
    )
    given = job(folder, {"sft": base})
    result = reward_model.run(config, given)
    return Trained(folder / "output", given.tracker.records, result.metrics)


@pytest.fixture(scope="module")
def ensemble(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(small_base, tmp_path_factory.mktemp("ensemble"), comparisons(), ensemble=N)


@pytest.fixture(scope="module")
def answers(small_base: Path) -> Rollout:
    tokenizer = load_tokenizer(small_base)
    ids = [tokenizer(text).input_ids for text in ("fox owl .", "saw", "dog fig axe", "hen .")]
    return as_rollout(ids, [[*row, tokenizer.eos_token_id] for row in ids], tokenizer.pad_token_id, CPU)


def rows(answers: Rollout) -> list[Tensor]:
    """Each text as one row of ids, for a model that knows nothing of rollouts."""
    return [
        torch.cat([answers.prompts[i][answers.prompt_mask[i]], answers.responses[i][answers.response_mask[i]]])[None]
        for i in range(len(answers.ended))
    ]


@torch.no_grad()
def logits(model: Any, answers: Rollout) -> Tensor:
    return torch.cat([model(input_ids=row).logits[0] for row in rows(answers)])


def test_the_checkpoint_opens_as_the_first_member_which_is_the_model_trained_alone(
    ensemble: Trained, small_base: Path, tmp_path: Path
) -> None:
    alone = train(small_base, tmp_path / "alone", comparisons())
    ours, its = (
        AutoModelForSequenceClassification.from_pretrained(found.directory).state_dict() for found in (ensemble, alone)
    )
    assert ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)
    assert not (alone.directory / "ensemble").exists()
    assert ensemble.metrics["pair_accuracy"] == alone.metrics["pair_accuracy"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_a_member_is_what_peft_makes_of_its_files(ensemble: Trained, answers: Rollout) -> None:
    """peft's own loading is the independent computation."""
    model = load_scalar_model(ensemble.directory, CPU).eval()
    members = read_members(ensemble.directory, model)
    assert len(members) == N - 1
    scores = member_scores(model, members, answers)
    assert scores.shape == (N, 4)
    told = json.loads((ensemble.directory / "ensemble" / "ensemble.json").read_text())["members"]
    for number, scale in enumerate(told, start=1):
        base = AutoModelForSequenceClassification.from_pretrained(ensemble.directory)
        peft_model = PeftModel.from_pretrained(base, ensemble.directory / "ensemble" / f"member_{number}").eval()
        expected = scale["gain"] * logits(peft_model, answers) + scale["bias"]
        torch.testing.assert_close(scores[number], expected, atol=1e-4, rtol=1e-4)
    assert (scores[0] - scores[1]).abs().max() > 1e-3 and (scores[1] - scores[2]).abs().max() > 1e-3
    # Outside, the model is the first member again.
    torch.testing.assert_close(response_scores(model, answers).detach(), scores[0], rtol=0, atol=0)


def test_scoring_and_judging_see_the_mean_of_all_members(ensemble: Trained, tmp_path: Path) -> None:
    scorer = open_scorer(str(ensemble.directory), tmp_path, "cpu")
    prompt = (Message("user", "repeat these words : fox owl"),)
    found = score_answers(scorer, [(prompt, ["fox owl .", "bear"])])[0]
    assert isinstance(found, Scored)
    ids, answer_ids = encode_answers(scorer.tokenizer, prompt, ["fox owl .", "bear"])
    answers = as_rollout([ids, ids], answer_ids, scorer.tokenizer.pad_token_id, CPU)
    apart = member_scores(scorer.model, read_members(ensemble.directory, scorer.model), answers)
    assert found.scores == pytest.approx(apart.mean(0).tolist(), abs=1e-5)
    assert (apart.mean(0) - apart[0]).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_the_lines_on_the_card_give_the_mean_score(ensemble: Trained, tmp_path: Path) -> None:
    first, further = re.findall(r"```python\n(.*?)```", (ensemble.directory / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(first.replace('directory = "."', f"directory = {str(ensemble.directory)!r}") + further, names)
    scorer = open_scorer(str(ensemble.directory), tmp_path, "cpu")
    prompt, texts = Message("user", "repeat these words : fox owl"), ["fox owl .", "bear"]
    found = score_answers(scorer, [((prompt,), texts)])[0]
    assert isinstance(found, Scored)
    asked = {"role": "user", "content": prompt.content}
    by_card = [names["mean_score"]([asked, {"role": "assistant", "content": text}]) for text in texts]
    assert by_card == pytest.approx(found.scores, abs=1e-4)
    alone = names["score"]([asked, {"role": "assistant", "content": texts[0]}])
    assert abs(alone - by_card[0]) > 1e-3


@pytest.mark.parametrize(
    "broken", ["ensemble.json", "member_1/adapter_model.safetensors", "member_2/adapter_config.json"]
)
def test_an_ensemble_that_is_not_whole_is_told(ensemble: Trained, tmp_path: Path, broken: str) -> None:
    copy = Path(shutil.copytree(ensemble.directory, tmp_path / "copy"))
    model = load_scalar_model(copy, CPU)
    (copy / "ensemble" / broken).write_text("{")
    with pytest.raises(ModelError, match=r"the ensemble in .* cannot be read"):
        read_members(copy, model)
    (copy / "ensemble" / "member_2" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_members(copy, model)


def test_every_member_is_on_the_first_one_s_scale_and_judged(ensemble: Trained) -> None:
    judged = ensemble.metrics["ensemble"]
    assert judged["members"] == N and len(judged["pair_accuracy_of_members"]) == N
    assert judged["pair_accuracy_of_members"][0] == pytest.approx(ensemble.metrics["pair_accuracy"])
    assert min(judged["pair_accuracy_of_members"]) > 0.6  # each has learned
    assert judged["disagreement"] > 0
    assert "contains 3 reward models" in (ensemble.directory / "README.md").read_text()
    losses = [name for record in ensemble.records for name in record if name.endswith("/loss")]
    assert {"reward_model/loss", "reward_model/member_1/loss", "reward_model/member_2/loss"} == set(losses)
    steps = [record["step"] for record in ensemble.records]
    assert steps == sorted(steps)  # wandb ignores a step that goes back


def test_members_see_the_data_in_orders_of_their_own(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    before = RankingCollator.__call__
    monkeypatch.setattr(RankingCollator, "__call__", lambda self, rows: seen.append(str(rows)) or before(self, rows))
    trained = train(small_base, tmp_path, comparisons()[:24], ensemble=2, held_out=0.0)
    steps = trained.metrics["steps"]
    assert len(seen) >= 2 * steps and set(seen[:steps]) != set(seen[-steps:])


SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}


@pytest.mark.parametrize(
    ("shape", "kv_heads", "vocabulary", "rank", "share"),
    [(SMOLLM2_135M, 3, 49152, 4, 0.019), (LLAMA_1B, 8, 128256, 8, 0.0095)],
    ids=["135M", "1B"],
)
def test_a_member_adds_one_or_two_hundredths_of_a_backbone(
    shape: dict[str, int], kv_heads: int, vocabulary: int, rank: int, share: float
) -> None:
    """As published and as PPO holds it. No weight is allocated."""
    with torch.device("meta"):
        settings = LlamaConfig(**shape, num_key_value_heads=kv_heads, vocab_size=vocabulary, num_labels=1)
        model = LlamaForSequenceClassification(settings)
        backbone = sum(parameter.numel() for parameter in model.parameters())
        trained = trained_member(add_lora(model, rank, 2 * rank, "all-linear", "SEQ_CLS"), "default")
        added = relative_to(trained, trained).size / backbone
    assert 0.8 * share < added <= share


SCORES = torch.tensor([[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]])


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [3.0, 4.0]), ("minimum", [1.0, 4.0]), ("penalised", [3 - 0.5 * (8 / 3) ** 0.5, 4.0])]
)
def test_members_make_one_score_and_tell_how_far_they_disagree(how: Any, expected: list[float]) -> None:
    found = combine(SCORES, how, 0.5)
    torch.testing.assert_close(found.scores, torch.tensor(expected))
    torch.testing.assert_close(found.watched["disagreement"], torch.tensor([(8 / 3) ** 0.5, 0.0]))


@pytest.mark.parametrize(
    ("lora", "shared"),
    [(None, False), (LoraConfig(rank=2), False), (LoraConfig(rank=2), True)],
    ids=["whole", "adapters", "one backbone"],
)
def test_ppo_scores_with_all_members_and_trains_none(
    ensemble: Trained, small_base: Path, tmp_path: Path, answers: Rollout, lora: LoraConfig | None, shared: bool
) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), ppo__pretraining_coef=0.0)
    parts = [RewardPart(ensemble="minimum"), RewardPart(ensemble="penalised", disagreement_coef=2.0, name="careful")]
    config = replace(load_recipe(path).ppo, iterations=1, rollout_batch=8, monitor=None, rewards=parts, lora=lora)
    config = replace(config, shared_backbone=shared)
    parents = {"sft": small_base, "reward_model": ensemble.directory}
    given = job(tmp_path, parents)

    roles = load_roles(small_base, ensemble.directory, CPU, lora, shared_backbone=shared)
    rewards = load_ppo_rewards(config, given, roles)
    if lora:  # a value model that has moved must not be heard in the scores
        with torch.no_grad():
            for parameter in roles.value_adapters.parameters():
                if parameter.requires_grad:
                    parameter += 0.1
    found = score_rollout(rewards, [], [""] * 4, answers).parts
    model = load_scalar_model(ensemble.directory, CPU).eval()
    expected = member_scores(model, read_members(ensemble.directory, model), answers)
    torch.testing.assert_close(found["reward_model"], expected.amin(0), atol=1e-5, rtol=1e-5)
    careful = expected.mean(0) - 2 * expected.std(0, correction=0)
    torch.testing.assert_close(found["careful"], careful, atol=1e-5, rtol=1e-5)

    ppo.run(config, given)
    (record,) = given.tracker.records
    assert (
        record["reward/reward_model_disagreement"] > 0 and record["reward/careful"] < record["reward/reward_model"] + 9
    )


def test_one_reward_model_has_no_minimum(small_base: Path, tmp_path: Path) -> None:
    save_checkpoint(from_language_model(small_base, CPU, 0), load_tokenizer(small_base), tmp_path / "alone")
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base))
    config = replace(load_recipe(path).ppo, rewards=[RewardPart(ensemble="minimum")])
    given = job(tmp_path, {"sft": small_base, "reward_model": tmp_path / "alone"})
    with pytest.raises(ConfigError, match=r"sets `ensemble: minimum`, but '.*' contains one reward model"):
        load_ppo_rewards(config, given, load_roles(small_base, tmp_path / "alone", CPU, None))


def test_members_need_adapters(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ensemble is above 1.*set reward_model\.lora"):
        load_recipe(write_recipe(tmp_path / "r.yaml", small_recipe(small_base), reward_model__ensemble=2))


def test_a_hook_left_behind_would_change_the_model(ensemble: Trained, answers: Rollout) -> None:
    model = load_scalar_model(ensemble.directory, CPU).eval()
    before = logits(model, answers)
    member = read_members(ensemble.directory, model)[0]
    with pytest.raises(RuntimeError), acting_as(model, member):
        assert not torch.equal(logits(model, answers), before)
        raise RuntimeError
    assert torch.equal(logits(model, answers), before)
    assert member.normalisation != RewardNormalisation()


def test_labelers_of_the_same_answers_become_votes_in_whatever_order_they_saw_them() -> None:
    first = Ranking([1, 2], [[5], [6], [7]], (1, 2, 3))
    turned = Ranking([1, 2], [[7], [5], [6]], (1, 2, 2))  # prefers the third of the first's order
    other = Ranking([1, 2], [[5], [6]], (1, 2))
    merged = merge_labelers([first, other, turned])
    assert [row.votes for row in merged] == [((1, 2, 3), (2, 2, 1)), ((1, 2),)]
    pairs = RankingCollator(0, 8, True, 0, LabelConfig(merge_labelers=True)).pairs(merged, 2)
    assert pairs.p_winner is not None
    found = dict(
        zip(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True), pairs.p_winner.tolist(), strict=True)
    )
    assert found == {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.5, (3, 4): 1.0}


def test_margins_are_those_of_the_records(small_base: Path, tmp_path: Path) -> None:
    collator = RankingCollator(0, 8, True, 0, LabelConfig(margins=True))
    rankings = [Ranking([1], [[5], [6]], (1, 2), 0.5), Ranking([2], [[5], [6]], (2, 1))]
    pairs = collator.pairs(rankings, 2)
    assert pairs.margin is not None and pairs.margin.tolist() == [0.5, 0.0]
    assert RankingCollator(0, 8, True, 0).pairs(rankings, 2).margin is None  # unless the recipe asks for them
    with pytest.raises(ConfigError, match="margins is set, but no comparison has a margin"):
        train(small_base, tmp_path, comparisons()[:16], labels=LabelConfig(margins=True))


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (LabelConfig(margins=True), -log_sigmoid(-2)),
        (LabelConfig(noise=0.2), -log_sigmoid(0)),
        (LabelConfig(merge_labelers=True), -log_sigmoid(0)),
    ],
    ids=["margins", "noise", "merged"],
)
def test_labels_reach_the_training(small_base: Path, tmp_path: Path, labels: LabelConfig, loss: float) -> None:
    """All scores begin near each other, so that the first loss is that of a difference of 0."""
    records = comparisons(margin=2.0)[:16]
    if labels.merge_labelers:
        records += [replace(record, id=f"{record.id}2", ranks=(2, 1, 1)) for record in records]
    found = train(small_base, tmp_path, records, held_out=0.0, labels=labels)
    losses = [record["reward_model/loss"] for record in found.records if "reward_model/loss" in record]
    assert losses[0] == pytest.approx(loss, abs=0.05)
    if labels.merge_labelers:  # two labelers of opposite mind leave nothing to learn
        assert losses[-1] == pytest.approx(loss, abs=0.02)
    assert found.metrics["steps"] == 2


def test_margins_and_soft_labels_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="margins and noise; margins need a sure winner"):
        LabelConfig(margins=True, noise=0.1)
