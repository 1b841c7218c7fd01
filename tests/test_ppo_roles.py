from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_recipe import Chain
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy.errors import ModelError
from policy.sampling.rollout import Rollout, as_rollout, response_logprobs
from reward.scalar_model import load_scalar_model, response_scores, response_values
from stages.ppo.roles import Roles, load_roles
from stages.settings import LoraConfig

CPU = torch.device("cpu")


def roles_of(chain: Chain, lora: LoraConfig | None, sft: Path | None = None) -> Roles:
    torch.manual_seed(0)
    return load_roles(sft or chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, lora)


@pytest.fixture(scope="module")
def answers() -> Rollout:
    return random_answers()


def random_answers() -> Rollout:
    rng = torch.Generator().manual_seed(0)
    prompts, responses = (
        [torch.randint(5, 80, (int(n),), generator=rng).tolist() for n in torch.randint(2, 9, (6,), generator=rng)]
        for _ in range(2)
    )
    return as_rollout(prompts, responses, 0, CPU)


@pytest.fixture
def adapted(chain: Chain, answers: Rollout) -> Roles:
    """With adapters, after a step that moved the policy and the value model away from where they began."""
    roles = roles_of(chain, LoraConfig(rank=4))
    train(roles, answers)
    return roles


def train(roles: Roles, answers: Rollout) -> None:
    """A few steps that move the policy and the value model."""
    for model, loss in (
        (roles.policy, lambda: response_logprobs(roles.policy, answers, 1.0).logprobs.sum()),
        (roles.value, lambda: response_values(roles.value, answers).sum()),
    ):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


@torch.no_grad()
def logprobs(model: torch.nn.Module, answers: Rollout) -> Tensor:
    return response_logprobs(model, answers, 1.0).logprobs


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["whole", "adapters"])
@torch.no_grad()
def test_policy_and_value_begin_as_the_sft_and_the_reward_model(
    chain: Chain, answers: Rollout, lora: LoraConfig | None
) -> None:
    roles = roles_of(chain, lora)
    sft = AutoModelForCausalLM.from_pretrained(chain.checkpoint("sft"))
    reward_model = load_scalar_model(chain.checkpoint("reward_model"), CPU)
    torch.testing.assert_close(logprobs(roles.policy, answers), logprobs(sft, answers), rtol=0, atol=1e-6)
    torch.testing.assert_close(response_values(roles.value, answers), response_values(reward_model, answers))
    assert not any(model.training for model in (roles.policy, roles.reference, roles.value, roles.reward))


@torch.no_grad()
def test_with_adapters_off_reference_and_reward_are_the_published_models_exactly(
    chain: Chain, adapted: Roles, answers: Rollout
) -> None:
    sft = AutoModelForCausalLM.from_pretrained(chain.checkpoint("sft"))
    reward_model = load_scalar_model(chain.checkpoint("reward_model"), CPU)
    with adapted.as_reference():
        assert torch.equal(logprobs(adapted.reference, answers), logprobs(sft, answers))
    with adapted.as_reward():
        assert torch.equal(response_scores(adapted.reward, answers), response_scores(reward_model, answers))
    # Outside, the adapters are on again, and both have moved.
    assert (logprobs(adapted.policy, answers) - logprobs(sft, answers)).abs().max() > 0.01
    assert (response_values(adapted.value, answers) - response_values(reward_model, answers)).abs().max() > 0.01


def test_adapters_train_themselves_and_the_value_head_alone(chain: Chain) -> None:
    roles = roles_of(chain, LoraConfig(rank=4))
    names = [name for model in (roles.policy, roles.value) for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "score" in name for name in names)
    assert any("score" in name for name in names)
    assert roles.reference is roles.policy and roles.reward is roles.value  # two copies of the weights, not four


def test_the_merged_policy_is_the_adapted_one(adapted: Roles, answers: Rollout, tmp_path: Path) -> None:
    before = logprobs(adapted.policy, answers)
    adapted.save_policy(tmp_path)
    published = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logprobs(published, answers), before, atol=1e-5, rtol=1e-5)
    assert not list(tmp_path.glob("adapter*"))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_whole_models_are_four_that_share_no_weight(chain: Chain) -> None:
    roles = roles_of(chain, None)
    models = (roles.policy, roles.reference, roles.value, roles.reward)
    storages = [{parameter.data_ptr() for parameter in model.parameters()} for model in models]
    assert sum(map(len, storages)) == len(set().union(*storages))


def test_a_tokenizer_that_pads_on_the_right_is_turned_round(chain: Chain, tmp_path: Path) -> None:
    """Catches: one was accepted as it was, and the policy continued from padding."""
    sft = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / "sft"))
    settings = json.loads((sft / "tokenizer_config.json").read_text())
    (sft / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    assert roles_of(chain, None, sft).tokenizer.padding_side == "left"


@pytest.mark.parametrize("what", ["vocabulary", "chat template", "EOS token"])
def test_models_that_read_other_text_are_refused(chain: Chain, tmp_path: Path, what: str) -> None:
    sft = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / "sft"))
    tokenizer = AutoTokenizer.from_pretrained(sft)
    if what == "vocabulary":
        tokenizer.add_tokens(["moreover"])
    elif what == "chat template":
        tokenizer.chat_template = tokenizer.chat_template + " "
    else:
        tokenizer.eos_token = "<unk>"
    tokenizer.save_pretrained(sft)
    with pytest.raises(ModelError, match=f"the {what} of the reward model.*train the reward model from this SFT model"):
        roles_of(chain, None, sft)
