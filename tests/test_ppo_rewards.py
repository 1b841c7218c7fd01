"""Rewards that PPO may use beside or instead of its reward model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import job, small_recipe, write_recipe
from tiny_models import byte_tokenizer, quickstart_tokenizer, tiny_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from checkpoint_store import CheckpointStore
from data_schema import Message, Prompt
from pipeline.plan import plan_pipeline
from pipeline.recipe import load_recipe
from policy.encoding import decode_responses, encode_prompts, set_template
from policy.errors import ModelError
from policy.language_model import load_tokenizer, save_checkpoint
from policy.sampling.rollout import Rollout, as_rollout
from reward.normalisation import RewardNormalisation
from reward.scalar_model import from_language_model, load_scalar_model, response_scores, store_normalisation
from reward.sources import LengthPenalty, OpeningPenalty, Part, RepetitionPenalty, Scored, score_rollout
from stages.errors import ConfigError
from stages.evaluate import stage as evaluate
from stages.ppo import learner as ppo_learner
from stages.ppo import stage as ppo
from stages.ppo.reward_settings import RewardPart
from stages.ppo.rewards import Reader, load_rewards
from stages.ppo.settings import PpoConfig

CPU = torch.device("cpu")
FUNCTIONS = """
calls = []

def length(prompts, answers, seed):
    calls.append((prompts, answers, seed))
    return [len(answer.split()) for answer in answers]

def draws(prompts, answers, seed):
    import random
    return [random.Random(seed).random() for _ in answers]

def fails(prompts, answers, seed):
    return [1 / 0 for _ in answers]

def too_few(prompts, answers, seed):
    return [1.0]

def words(prompts, answers, seed):
    return answers

def nothing(prompts, answers, seed):
    pass

def ends_python(prompts, answers, seed):
    raise SystemExit(3)

def a_generator(prompts, answers, seed):
    return (1.0 for _ in answers)

def not_a_number(prompts, answers, seed):
    return [float("nan")] * len(answers)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of one's own beside the recipe; its name."""
    name = f"functions_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def make_reward_model(sft: Path, directory: Path, seed: int, gain: float, bias: float) -> Path:
    model = from_language_model(sft, CPU, seed)
    store_normalisation(model, RewardNormalisation(gain, bias))
    save_checkpoint(model, load_tokenizer(sft), directory)
    return directory


@pytest.fixture(scope="module")
def models(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An SFT model, two reward models on it, and one with another tokenizer and template."""
    folder = tmp_path_factory.mktemp("rewards")
    tokenizer = byte_tokenizer()
    set_template(tokenizer, "chatml")
    save_checkpoint(tiny_llama(tokenizer, max_position_embeddings=512), tokenizer, folder / "foreign_base")
    return {
        "sft": small_base,
        "reward_model": make_reward_model(small_base, folder / "reward_model", 0, 2.0, 0.5),
        "other": make_reward_model(small_base, folder / "other", 1, 1.0, -1.0),
        "foreign": make_reward_model(folder / "foreign_base", folder / "foreign", 2, 3.0, 0.25),
    }


PROMPTS = [
    Prompt(f"p{i}", "test", prompt=(Message("user", f"repeat these words : {words}"),))
    for i, words in enumerate(["fox owl", "saw", "fig red lake"])
]


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    """Three answers in the policy's ids: one that ended, one that was cut, one that is EOS alone."""
    tokenizer = quickstart_tokenizer()
    answers = [tokenizer("fox owl fox owl .").input_ids, tokenizer("saw saw saw").input_ids, []]
    eos = tokenizer.eos_token_id
    rows = [[*answers[0], eos], answers[1], [eos]]
    prompts = encode_prompts(tokenizer, [prompt.prompt for prompt in PROMPTS])
    laid = as_rollout(prompts, rows, tokenizer.pad_token_id, CPU)
    return laid._replace(ended=torch.tensor([True, False, True]))


def texts_of(rollout: Rollout) -> list[str]:
    return decode_responses(quickstart_tokenizer(), rollout.responses, rollout.lengths)


def load(models: dict[str, Path], *rewards: RewardPart, **parents: Path) -> list[Part]:
    reader = Reader(load_tokenizer(models["sft"]), models["sft"], CPU, 2, 7)
    return load_rewards(rewards, {"reward_model": models["reward_model"], **parents}, reader)


def scores(models: dict[str, Path], rollout: Rollout, *rewards: RewardPart, **parents: Path) -> Any:
    return score_rollout(load(models, *rewards, **parents), PROMPTS, texts_of(rollout), rollout)


def test_the_default_is_the_reward_model_s_score_alone(models: dict[str, Path], rollout: Rollout) -> None:
    found = scores(models, rollout, *PpoConfig([]).rewards)
    with torch.no_grad():
        alone = response_scores(load_scalar_model(models["reward_model"], CPU).eval(), rollout)
    torch.testing.assert_close(found.judged, alone, atol=1e-6, rtol=1e-6)
    assert torch.equal(found.penalties, torch.zeros(3)) and list(found.parts) == ["reward_model"]


def test_a_sum_weighs_every_part_and_keeps_each_under_its_name(
    models: dict[str, Path], rollout: Rollout, functions: str
) -> None:
    found = scores(
        models,
        rollout,
        RewardPart(),
        RewardPart(model=str(models["other"]), weight=-0.5),
        RewardPart(function=f"{functions}:length", weight=0.1, name="words"),
        RewardPart(length_penalty=2, weight=0.25),
        RewardPart(repetition_penalty=2, weight=2.0),
        RewardPart(opening_penalty=1, weight=3.0),
        **{"rewards.1": models["other"]},
    )
    assert list(found.parts) == [
        "reward_model",
        "other",
        "words",
        "length_penalty",
        "repetition_penalty",
        "opening_penalty",
    ]
    own, other = (
        response_scores(load_scalar_model(models[name], CPU).eval(), rollout).detach()
        for name in ("reward_model", "other")
    )
    torch.testing.assert_close(found.judged, own - 0.5 * other + 0.1 * torch.tensor([5.0, 3.0, 0.0]))
    # Lengths 6, 3 and 1 with EOS. Of the 2-grams "fox owl, owl fox, fox owl, owl ." one of four comes again, of
    # "saw saw, saw saw" one of two.
    torch.testing.assert_close(found.penalties, torch.tensor([-4 * 0.25 - 2 / 4, -1 * 0.25 - 2 / 2, 0.0]))


def test_penalties_are_charged_whether_or_not_an_answer_ended(models: dict[str, Path], rollout: Rollout) -> None:
    """Else an answer that never ends could cost less than a long one that does."""
    from stages.ppo.roles import load_roles

    roles = load_roles(models["sft"], models["reward_model"], CPU, None)
    config = PpoConfig([], score_without_eos=-3.0, kl_coef=0.0)
    parts = [Part("judge", 1.0, lambda *_: Scored(torch.tensor([5.0, 6.0, 7.0]), {}), False)]
    parts.append(Part("length", 0.5, LengthPenalty(1), True))
    found = score_rollout(parts, PROMPTS, texts_of(rollout), rollout)
    experience = ppo.evaluate_rollout(roles, rollout, found, config, 0.0)
    assert experience.scores.tolist() == [5.0 - 0.5 * 5, -3.0 - 0.5 * 2, 7.0]


@pytest.mark.parametrize(("n", "shares"), [(1, [1 / 2, 2 / 3, 0]), (3, [0, 0, 0]), (9, [0, 0, 0])])
def test_repetition_is_the_share_of_n_grams_seen_before(rollout: Rollout, n: int, shares: list[float]) -> None:
    """ "fox owl fox owl ." has 3 distinct of 5 words, so 2 of 5 come again."""
    expected = [2 / 5, *shares[1:]] if n == 1 else shares
    found = RepetitionPenalty(n)(PROMPTS, texts_of(rollout), rollout).scores
    torch.testing.assert_close(found, -torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("n", "alike"), [(1, [2, 2, 0, 2]), (2, [1, 1, 0, 0]), (9, [0, 0, 0, 0])])
def test_an_opening_costs_the_share_of_other_answers_that_have_it(n: int, alike: list[int]) -> None:
    """ "5 6" begins two of four answers; "5" three, one of which is no longer than that."""
    answers = [[5, 6, 7], [5, 6, 8, 1], [6, 5], [5]]
    given = as_rollout([[2]] * 4, answers, pad_id=0, device=CPU)
    found = OpeningPenalty(n)(PROMPTS, [""] * 4, given).scores
    torch.testing.assert_close(found, -torch.tensor(alike) / 3)


def test_an_opening_without_other_answers_costs_nothing() -> None:
    given = as_rollout([[2]], [[5, 6]], pad_id=0, device=CPU)
    assert OpeningPenalty(1)(PROMPTS, [""], given).scores.tolist() == [0.0]


def test_a_function_is_called_once_a_batch_with_prompts_texts_and_a_seed(
    models: dict[str, Path], rollout: Rollout, functions: str
) -> None:
    import importlib

    calls = importlib.import_module(functions).calls
    for _ in range(2):
        scores(models, rollout, RewardPart(function=f"{functions}:length"))
    (prompts, answers, seed), second = calls
    assert prompts == PROMPTS and answers == ["fox owl fox owl .", "saw saw saw", ""]
    assert second[2] == seed  # the same texts in the same recipe
    drawn = [
        score_rollout(load(models, RewardPart(function=f"{functions}:draws")), PROMPTS, texts, rollout).judged
        for texts in (texts_of(rollout), texts_of(rollout), ["a", "b", "c"])
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("fails", r"raised ZeroDivisionError: division by zero \(functions_of_.*\.py:\d+\)"),
        ("too_few", r"returned numbers of shape \(1,\) for 3 answers"),
        ("words", r"returned a list with text \(.*one number for each answer"),
        ("ends_python", r"raised SystemExit: 3 \("),
        ("nothing", "returned nothing; return a list"),
        ("a_generator", "returned something that is not a list; return"),
        ("not_a_number", "returned nan for the answer 'fox owl fox owl .'"),
    ],
)
def test_what_a_function_does_wrong_is_told_in_one_line(
    models: dict[str, Path], rollout: Rollout, functions: str, function: str, told: str
) -> None:
    with pytest.raises(ModelError, match=f"the reward function '{functions}:{function}' {told}") as error:
        scores(models, rollout, RewardPart(function=f"{functions}:{function}"))
    assert "\n" not in str(error.value)


def test_a_reward_model_of_another_tokenizer_reads_text_only_where_the_recipe_says_so(
    models: dict[str, Path], rollout: Rollout
) -> None:
    foreign = {"rewards.0": models["foreign"]}
    with pytest.raises(ModelError, match=r"the vocabulary of the reward model .*set text_crosses_over for it"):
        load(models, RewardPart(model=str(models["foreign"])), **foreign)
    found = scores(models, rollout, RewardPart(model=str(models["foreign"]), text_crosses_over=True), **foreign)

    model = AutoModelForSequenceClassification.from_pretrained(models["foreign"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["foreign"])
    endings = ["<|im_end|>", "", "<|im_end|>"]  # the second answer was cut
    for i, (prompt, text, end) in enumerate(zip(PROMPTS, texts_of(rollout), endings, strict=True)):
        asked = f"<|im_start|>user\n{prompt.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        ids = [token for piece in (asked, text + end) for token in tokenizer(piece, add_special_tokens=False).input_ids]
        with torch.no_grad():
            logit = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert found.judged[i].item() == pytest.approx(3 * logit + 0.25, abs=1e-4)


def test_text_that_need_not_cross_over_is_read_as_ids(models: dict[str, Path], rollout: Rollout) -> None:
    plain, crossing = (scores(models, rollout, RewardPart(text_crosses_over=set_)).judged for set_ in (False, True))
    assert torch.equal(plain, crossing)


def test_a_conversation_too_long_for_the_foreign_model_is_told(
    models: dict[str, Path], rollout: Rollout, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(models["foreign"])
    model = load_scalar_model(models["foreign"], CPU)
    model.config.max_position_embeddings = 16
    save_checkpoint(model, tokenizer, tmp_path / "short")
    part = RewardPart(model="short", text_crosses_over=True)
    with pytest.raises(ModelError, match=r"is \d+ tokens for the reward model, which has positions for 16; lower max"):
        scores(models, rollout, part, **{"rewards.0": tmp_path / "short"})


def short_ppo(base: Path, folder: Path, **changes: Any) -> PpoConfig:
    path = write_recipe(folder / "r.yaml", small_recipe(base), ppo__pretraining_coef=0.0)
    return replace(load_recipe(path).ppo, iterations=1, rollout_batch=8, monitor=None, **changes)


def test_ppo_runs_on_code_alone_and_its_value_model_starts_from_the_sft_model(
    models: dict[str, Path], tmp_path: Path, functions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = ppo_learner.load_roles
    monkeypatch.setattr(ppo_learner, "load_roles", lambda *words: seen.append(before(*words)) or seen[-1])
    parts = [RewardPart(function=f"{functions}:length", weight=0.1), RewardPart(length_penalty=4, weight=0.05)]
    config = short_ppo(models["sft"], tmp_path, rewards=parts, score_without_eos=-7.0)
    given = job(tmp_path, {"sft": models["sft"]})
    ppo.run(config, given)
    (record,), (roles,) = given.tracker.records, seen
    assert roles.reward is None
    ended = record["objective/eos_rate"]
    assert record["reward/length_penalty"] <= 0 <= record["reward/length"]
    assert record["objective/score"] <= 0.1 * record["reward/length"] - 7.0 * (1 - ended) + 1e-5
    body = from_language_model(models["sft"], CPU, given.seed)  # drawn from the same seed
    for name in ("model.embed_tokens.weight", "score.weight"):
        change = (roles.value.get_parameter(name) - body.get_parameter(name)).abs().max()
        assert 0 < change < 0.02 if name == "score.weight" else change < 0.02  # but for two small steps


def test_each_part_is_recorded_in_ppo_and_in_evaluation(models: dict[str, Path], tmp_path: Path) -> None:
    parts = [RewardPart(), RewardPart(repetition_penalty=1, weight=0.5)]
    given = job(tmp_path / "ppo", {"sft": models["sft"], "reward_model": models["reward_model"]})
    ppo.run(short_ppo(models["sft"], tmp_path, rewards=parts), given)
    assert {"reward/reward_model", "reward/repetition_penalty"} <= given.tracker.records[0].keys()

    config = replace(load_recipe(tmp_path / "r.yaml").evaluate, rewards=parts, judge=None, n_prompts=8)
    parents = {role: models["sft"] for role in ("sft", "ppo")} | {"reward_model": models["reward_model"]}
    result = evaluate.run(config, job(tmp_path / "evaluate", parents))
    assert result.metrics["decided_by"] == "reward"
    numbers = result.metrics["models"]["ppo"]
    parts_sum = numbers["reward_reward_model_mean"] + 0.5 * numbers["reward_repetition_penalty_mean"]
    assert numbers["reward_mean"] == pytest.approx(parts_sum, abs=1e-5)


def recipe(base: Path, folder: Path, **changes: Any) -> Any:
    return load_recipe(write_recipe(folder / "r.yaml", small_recipe(base), **changes))


def keys(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    store = CheckpointStore(folder / "store")
    return {plan.stage: plan for plan in plan_pipeline(recipe(base, folder, **changes), store)}


def test_a_recipe_needs_no_reward_model_where_code_is_the_reward(
    small_base: Path, tmp_path: Path, functions: str
) -> None:
    without = {"reward_model": ..., "comparisons": ..., "ppo__rewards": [{"function": f"{functions}:length"}]}
    plans = keys(small_base, tmp_path, **without)
    assert list(plans) == ["sft", "ppo", "evaluate"]
    assert plans["ppo"].parents.keys() == {"sft"} and plans["evaluate"].parents.keys() == {"sft", "ppo"}
    assert plans["evaluate"].config.rewards == plans["ppo"].config.rewards


def test_a_function_that_changed_redoes_ppo_and_evaluation(small_base: Path, tmp_path: Path, functions: str) -> None:
    rewards = {"ppo__rewards": [{"function": f"{functions}:length"}, {"model": None}]}
    before = keys(small_base, tmp_path, **rewards)
    (tmp_path / f"{functions}.py").write_text(FUNCTIONS.replace("len(answer.split())", "len(answer)"))
    after = keys(small_base, tmp_path, **rewards)
    assert [stage for stage in before if before[stage].key != after[stage].key] == ["ppo", "evaluate"]


def test_a_model_that_a_part_names_is_a_parent(models: dict[str, Path], tmp_path: Path) -> None:
    rewards = [{"model": None}, {"model": str(models["other"]), "weight": 0.5}]
    plan = keys(models["sft"], tmp_path, ppo__rewards=rewards)["ppo"]
    assert plan.outside == {"rewards.1": models["other"]} and plan.parents.keys() == {"sft", "reward_model"}
    assert "rewards.1" in plan.data


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ([], "ppo.rewards is empty; leave it out to use only the reward model"),
        ([{"model": None}, {"weight": 0.5}], "ppo.rewards has 2 named 'reward_model'; give each its own `name`"),
        ([{"function": "a:b", "length_penalty": 3}], "one of the rewards sets function and length_penalty"),
        ([{"length_penalty": 3, "text_crosses_over": True}], "it is only for reward models"),
        ([{"length_penalty": -1}], "rewards.length_penalty is -1; it must be at least 0"),
        ([{"name": "a b"}], "a reward is named 'a b'; use only letters, digits and _ in its name"),
        ([{"weight": ".inf"}], "rewards.weight|the weight of the reward 'reward_model' is inf"),
        ([{"functon": "a:b"}], "'ppo.rewards' has no setting 'functon'. Did you mean 'function'?"),
        ([{"function": "nowhere_at_all:f"}], r"ppo.rewards\[0\].function: cannot find 'nowhere_at_all:f'"),
        ([{"model": "no/such"}], "ppo.rewards.0 is 'no/such', which is not a directory"),
    ],
)
def test_a_reward_that_cannot_be_is_told_before_anything_runs(
    small_base: Path, tmp_path: Path, rewards: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")) as error:
        keys(small_base, tmp_path, ppo__rewards=json.loads(json.dumps(rewards)))
    assert "\n" not in str(error.value)


def test_without_a_reward_model_a_recipe_that_reads_one_is_refused(small_base: Path, tmp_path: Path) -> None:
    changes = {"reward_model": ..., "comparisons": ..., "evaluate": ...}
    with pytest.raises(ConfigError, match="ppo needs a reward model"):
        recipe(small_base, tmp_path, **changes, ppo__rewards=[{"length_penalty": 1}, {"model": None}])
