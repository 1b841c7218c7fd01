from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, CohereConfig

from policy.encoding import pad
from policy.errors import ModelError
from policy.language_model import LanguageModel, save_checkpoint
from policy.reading.twin import tiny_twin
from policy.sampling.rollout import Rollout, as_rollout
from reward import classes
from reward.normalisation import RewardNormalisation
from reward.scalar_model import (
    from_language_model,
    load_scalar_model,
    response_scores,
    response_values,
    scalar_head,
    store_normalisation,
    stored_normalisation,
)

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
RESPONSES = [[20, 21, 22, 1], [23, 1], [1], [24, 25, 26, 27, 28, 29]]
GAIN, BIAS = 2.5, -0.75


@pytest.fixture(scope="module")
def scorer(tiny_base: Path) -> Any:
    model = from_language_model(tiny_base, CPU, 0).eval()
    store_normalisation(model, RewardNormalisation(GAIN, BIAS))
    return model


@torch.no_grad()
def scores(model: Any, rollout: Rollout, normalised: bool = False) -> torch.Tensor:
    return response_scores(model, rollout, normalised)


@torch.no_grad()
def values(model: Any, rollout: Rollout, normalised: bool = False) -> torch.Tensor:
    return response_values(model, rollout, normalised)


def test_a_new_head_is_drawn_from_its_seed_with_the_papers_spread(tiny_base: Path) -> None:
    weights = []
    for seed in range(20):
        torch.manual_seed(seed % 2)  # the global generator has no say
        weights.append(scalar_head(from_language_model(tiny_base, CPU, seed // 2)).weight.detach())
    assert all(torch.equal(weights[i], weights[i + 1]) for i in range(0, 20, 2))
    assert not torch.equal(weights[0], weights[2])
    drawn = torch.stack(weights[::2]).flatten()  # 320 numbers with variance 1/33
    assert abs(drawn.var().item() * 33 - 1) < 5 * (2 / 320) ** 0.5
    assert abs(drawn.mean().item()) < 5 * (1 / 33 / 320) ** 0.5


def test_the_body_is_the_language_models(tiny: LanguageModel, scorer: Any) -> None:
    for name, weight in tiny.model.model.named_parameters():
        assert torch.equal(scorer.model.get_parameter(name), weight)


def test_the_published_directory_scores_the_same_in_plain_transformers(
    tmp_path: Path, tiny: LanguageModel, scorer: Any
) -> None:
    save_checkpoint(scorer, tiny.tokenizer, tmp_path)
    texts = pad([p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)], tiny.tokenizer.pad_token_id, "right")
    published = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = published(input_ids=texts.ids, attention_mask=texts.mask.long()).logits.squeeze(1)
    rollout = as_rollout(PROMPTS, RESPONSES, tiny.tokenizer.pad_token_id, CPU)
    torch.testing.assert_close(scores(scorer, rollout), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores(scorer, rollout, normalised=True), GAIN * logits + BIAS, atol=1e-5, rtol=1e-5)


def test_gain_and_bias_survive_a_reload(tmp_path: Path, tiny: LanguageModel, scorer: Any) -> None:
    save_checkpoint(scorer, tiny.tokenizer, tmp_path)
    again = load_scalar_model(tmp_path, CPU).eval()
    assert stored_normalisation(again) == RewardNormalisation(GAIN, BIAS)
    rollout = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    for normalised in (True, False):
        assert torch.equal(scores(again, rollout, normalised), scores(scorer, rollout, normalised))


def test_a_reward_model_from_elsewhere_is_left_as_it_is(scorer: Any, tmp_path: Path, tiny: LanguageModel) -> None:
    store_normalisation(scorer, RewardNormalisation())
    save_checkpoint(scorer, tiny.tokenizer, tmp_path)
    store_normalisation(scorer, RewardNormalisation(GAIN, BIAS))
    config = tmp_path / "config.json"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if '"reward_' not in line))
    assert stored_normalisation(load_scalar_model(tmp_path, CPU)) == RewardNormalisation(1.0, 0.0)


def test_a_language_model_is_no_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^'.*tiny_base' is a LlamaForCausalLM, not a reward model; give .* label\.$"):
        load_scalar_model(tiny_base, CPU)
    with pytest.raises(ModelError, match=r"^no reward model at '.*': give a directory"):
        load_scalar_model(tmp_path / "nothing", CPU)


def test_the_score_is_read_at_the_last_real_token_even_if_that_is_no_eos(scorer: Any) -> None:
    before = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    plain = scores(scorer, before)
    for row, response in enumerate(RESPONSES):
        for place in range(before.responses.shape[1]):
            ids = before.responses.clone()
            ids[row, place] = 60
            changed = scores(scorer, before._replace(responses=ids)) != plain
            # What is real moves its own score and no other; what stands after the end moves nothing.
            assert changed.nonzero().flatten().tolist() == ([row] if place < len(response) else [])


def test_with_the_head_on_one_state_the_score_is_that_of_the_last_token(scorer: Any) -> None:
    """The state at the last token alone: cut one token off and the score is the value of the state before it."""
    rollout = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    v = values(scorer, rollout)
    for row, response in enumerate(RESPONSES):
        if len(response) > 1:
            cut = scores(scorer, as_rollout([PROMPTS[row]], [response[:-1]], 0, CPU))
            torch.testing.assert_close(cut[0], v[row, len(response) - 1], atol=1e-5, rtol=1e-5)


def test_a_value_knows_the_tokens_before_it_and_not_its_own_or_later_ones(scorer: Any) -> None:
    rollout = as_rollout(PROMPTS[:1], [[20, 21, 22, 23, 24]], 0, CPU)
    plain = values(scorer, rollout)[0]
    for place in range(5):
        ids = rollout.responses.clone()
        ids[0, place] = 60
        changed = (values(scorer, rollout._replace(responses=ids))[0] - plain).abs() > 1e-6
        assert changed.tolist() == [False] * (place + 1) + [True] * (4 - place)
    other = values(scorer, as_rollout([[5, 6, 60]], [[20, 21, 22, 23, 24]], 0, CPU))[0]
    assert (other != plain).all()


@pytest.mark.parametrize("normalised", [True, False])
def test_values_have_filler_zero_and_follow_the_normalisation(scorer: Any, normalised: bool) -> None:
    rollout = as_rollout(PROMPTS, RESPONSES, 0, CPU)
    got, raw = values(scorer, rollout, normalised), values(scorer, rollout)
    assert got.shape == rollout.responses.shape and got.dtype == torch.float32
    assert (got[~rollout.response_mask] == 0).all()
    expected = GAIN * raw + BIAS if normalised else raw
    torch.testing.assert_close(got[rollout.response_mask], expected[rollout.response_mask])


def test_an_architecture_without_a_known_head_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no head named 'score' or 'classifier'"):
        scalar_head(torch.nn.Linear(2, 1))


def test_a_class_is_tried_on_real_tensors_even_while_a_model_is_built_without_any() -> None:
    classes._classes.pop(CohereConfig, None)
    with torch.device("meta"):
        assert classes.scalar_class(CohereConfig()).__name__ == "CohereForSequenceClassification"


@pytest.mark.parametrize(
    ("name", "lacks"), [("score.weight", "score.weight"), ("model.norm.weight", "model.norm.weight")]
)
def test_a_class_made_here_refuses_a_reward_model_that_lacks_weights(tmp_path: Path, name: str, lacks: str) -> None:
    twin = tiny_twin(CohereConfig())
    twin.save_pretrained(tmp_path / "base")
    model = classes.load_scalar(tmp_path / "base", twin.config, with_head=False)
    model.save_pretrained(tmp_path / "reward")
    assert classes.load_scalar(tmp_path / "reward", model.config, with_head=True).score.weight.abs().sum() == 0
    weights = load_file(tmp_path / "reward" / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "reward" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks weights of a reward model: {name}"):
        classes.load_scalar(tmp_path / "reward", model.config, with_head=True)
