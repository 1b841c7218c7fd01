"""PPO's four roles over one copy of the weights, against whole models of their own."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job
from test_ppo_roles import random_answers, train
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.recipe import load_recipe
from policy.memory.checkpointing import checkpointed
from policy.memory.shared_weights import share_weights
from policy.sampling.rollout import Rollout, response_logprobs
from reward.adapter import weights_hash
from reward.scalar_model import load_scalar_model, response_scores, response_values
from stages.errors import ConfigError
from stages.ppo import stage as ppo
from stages.ppo.reward_settings import RewardPart
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.reward_model import stage as reward_model
from stages.settings import LoraConfig

CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def reward(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained with LoRA, of another rank than PPO's adapters, over the chain's SFT model."""
    config = replace(load_recipe(chain.path).reward_model, lora=LoraConfig(rank=2, alpha=8))
    given = job(tmp_path_factory.mktemp("reward"), {role: chain.checkpoint(role) for role in ("sft", "comparisons")})
    reward_model.run(config, given)
    return given.output


@pytest.fixture
def roles(chain: Chain, reward: Path) -> Roles:
    torch.manual_seed(0)
    return load_roles(chain.checkpoint("sft"), reward, CPU, LORA, shared_backbone=True)


@pytest.fixture(scope="module")
def answers() -> Rollout:
    return random_answers()


def logprobs(model: Any, answers: Rollout) -> Tensor:
    return response_logprobs(model, answers, 1.0).logprobs


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def storages(*models: nn.Module) -> dict[int, int]:
    """Where the weights lie -> how many numbers."""
    return {p.data_ptr(): p.numel() for model in models for p in model.parameters()}


@torch.no_grad()
def test_the_roles_compute_what_separate_whole_models_do(
    chain: Chain, reward: Path, roles: Roles, answers: Rollout
) -> None:
    sft = AutoModelForCausalLM.from_pretrained(chain.checkpoint("sft"))
    merged = load_scalar_model(reward, CPU)
    assert torch.equal(logprobs(roles.reference, answers), logprobs(sft, answers))
    torch.testing.assert_close(logprobs(roles.policy, answers), logprobs(sft, answers), **CLOSE)
    torch.testing.assert_close(response_scores(roles.reward, answers), response_scores(merged, answers), **CLOSE)
    torch.testing.assert_close(response_values(roles.value, answers), response_values(merged, answers), **CLOSE)
    # The adapter says something: over the bare backbone the same head scores otherwise.
    bare = AutoModelForSequenceClassification.from_pretrained(chain.checkpoint("sft"), num_labels=1)
    bare.score.weight.copy_(merged.score.weight)
    assert (response_scores(bare, answers, False) - response_scores(merged, answers, False)).abs().max() > 1e-3


def test_there_is_one_copy_of_the_weights(roles: Roles) -> None:
    backbone = sum(storages(roles.reference).values())
    everything = sum(storages(roles.policy, roles.reference, roles.value, roles.reward).values())
    added = [
        p.numel()
        for model in (roles.policy, roles.value, roles.reward)
        for name, p in model.named_parameters()
        if "lora_" in name or "score" in name
    ]
    assert everything == backbone + sum(added)
    assert sum(added) < 0.5 * backbone  # in two layers of width 32; in a real model a hundredth


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_gradients_reach_the_adapter_of_their_role_alone_in_any_order(
    roles: Roles, answers: Rollout, checkpointing: bool
) -> None:
    """All forwards first and the backwards in reverse, so that layers computed again are those of another role than
    the one that ran last."""
    with checkpointed(checkpointing, roles.policy, roles.value):
        policy, value = logprobs(roles.policy, answers).sum(), response_values(roles.value, answers).sum()
        with torch.no_grad():
            logprobs(roles.reference, answers)
            response_scores(roles.reward, answers)
        policy.backward()
        assert trained_names(roles.policy) and not trained_names(roles.value)
        value.backward()
    assert all("lora_" in name for name in trained_names(roles.policy))
    assert all("lora_" in name or "score" in name for name in trained_names(roles.value))
    assert any("score" in name for name in trained_names(roles.value))
    assert not trained_names(roles.reference) and not trained_names(roles.reward)
    assert trained_names(roles.policy) == {n for n, p in roles.policy.named_parameters() if p.requires_grad}


def test_the_value_model_s_gradient_is_that_of_peft_s_adapter_over_a_model_of_its_own(
    chain: Chain, reward: Path, roles: Roles, answers: Rollout
) -> None:
    """The independent computation: the reward model loaded whole, weights differentiated, chained to the factors."""
    whole = load_scalar_model(reward, CPU)
    response_values(whole, answers).sum().backward()
    response_values(roles.value, answers).sum().backward()
    scale = 8 / 2
    checked = 0
    for name, module in roles.value.named_modules():
        if hasattr(module, "lora_A"):
            gradient = whole.get_submodule(name).weight.grad
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            # Rounding grows with the terms of a sum: relative to the largest gradient of the matrix.
            for found, want in (
                (down.grad, scale * up.detach().T @ gradient),
                (up.grad, scale * gradient @ down.detach().T),
            ):
                largest = float(want.abs().max())
                torch.testing.assert_close(found / largest, want / largest, **CLOSE)
            checked += 1
    assert checked == 14  # seven linear layers in each of two blocks


@torch.no_grad()
def outputs(roles: Roles, answers: Rollout) -> dict[str, Tensor]:
    return {
        "policy": logprobs(roles.policy, answers),
        "reference": logprobs(roles.reference, answers),
        "value": response_values(roles.value, answers),
        "reward": response_scores(roles.reward, answers),
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_training_policy_and_value_moves_neither_reference_nor_reward(
    roles: Roles, answers: Rollout, checkpointing: bool
) -> None:
    before = outputs(roles, answers)
    with checkpointed(checkpointing, roles.policy, roles.value):
        train(roles, answers)
    after = outputs(roles, answers)
    for name in ("reference", "reward"):
        assert torch.equal(after[name], before[name])
    for name in ("policy", "value"):
        assert (after[name] - before[name]).abs().max() > 0.01
    # Whoever is asked in between, and in whatever order, leaves nothing behind.
    again = dict(reversed(outputs(roles, answers).items()))
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_the_policy_is_published_merged(roles: Roles, answers: Rollout, tmp_path: Path) -> None:
    train(roles, answers)
    with torch.no_grad():
        before = logprobs(roles.policy, answers)
        roles.save_policy(tmp_path)
        published = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(logprobs(published, answers), before, **CLOSE)
    assert not list(tmp_path.glob("adapter*"))


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "triptych.ppo"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "triptych.ppo"]


def test_a_reward_model_without_an_adapter_over_this_model_means_two_copies_and_one_line(
    chain: Chain, reward: Path, tmp_path: Path, warnings_of: Callable[[], list[str]]
) -> None:
    for directory, why in ((chain.checkpoint("reward_model"), "published without an adapter"), (reward, "on other")):
        sft = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / why))
        if directory is reward:
            AutoModelForCausalLM.from_pretrained(chain.base).save_pretrained(sft)
        roles = load_roles(sft, directory, CPU, LORA, shared_backbone=True)
        assert roles.reference is roles.policy and roles.reward is roles.value
        (told,) = warnings_of()[-1:]
        assert why in told and "two copies of the weights" in told and "\n" not in told
    assert len(warnings_of()) == 2


def test_another_tokenizer_file_or_manifest_makes_no_other_weights(chain: Chain, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(chain.checkpoint("sft"), tmp_path / "sft"))
    (copied / "manifest.json").write_text("{}")
    assert weights_hash(copied) == weights_hash(chain.checkpoint("sft"))
    assert weights_hash(chain.base) != weights_hash(copied)


def test_without_a_reward_model_the_value_model_is_adapters_and_a_drawn_head(chain: Chain, answers: Rollout) -> None:
    roles = load_roles(chain.checkpoint("sft"), None, CPU, LORA, 3, shared_backbone=True)
    apart = load_roles(chain.checkpoint("sft"), None, CPU, LORA, 3)
    assert roles.reward is None
    with torch.no_grad():
        values, expected = response_values(roles.value, answers), response_values(apart.value, answers)
    torch.testing.assert_close(values, expected, **CLOSE)
    assert values.abs().max() > 0.01
    assert set(storages(roles.reference)) <= set(storages(roles.value))


def test_published_adapters_name_no_path_and_are_small(chain: Chain, reward: Path) -> None:
    settings = json.loads((reward / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None and settings["r"] == 2 and settings["lora_alpha"] == 8
    sizes = [path.stat().st_size for path in (reward / "adapter" / "adapter_model.safetensors",)]
    assert sizes[0] < 0.5 * (reward / "model.safetensors").stat().st_size
    assert "`adapter/`" in (reward / "README.md").read_text()
    assert not (chain.checkpoint("reward_model") / "adapter").exists()


def config_of(chain: Chain, **changes: Any) -> PpoConfig:
    return replace(load_recipe(chain.path).ppo, pretraining_coef=0.0, monitor=None, **changes)


def test_ppo_over_one_backbone_runs_and_begins_at_the_sft_model(chain: Chain, reward: Path, tmp_path: Path) -> None:
    config = config_of(chain, lora=LORA, shared_backbone=True, gradient_checkpointing=True, ema_decay=0.5)
    given = job(tmp_path, {"sft": chain.checkpoint("sft"), "reward_model": reward})
    ppo.run(config, given)
    first, second = given.tracker.records
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4) and second["objective/kl"] != first["objective/kl"]
    published = AutoModelForCausalLM.from_pretrained(given.output)
    start = AutoModelForCausalLM.from_pretrained(chain.checkpoint("sft"))
    assert (published.model.layers[0].mlp.up_proj.weight - start.model.layers[0].mlp.up_proj.weight).abs().max() > 1e-5


def test_a_shared_backbone_needs_adapters(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.shared_backbone is set.*set ppo\.lora"):
        config_of(chain, shared_backbone=True)
    assert config_of(chain, shared_backbone=True, lora=LORA, rewards=[RewardPart()]).shared_backbone


def test_what_one_copy_is_given_the_other_does_not_see() -> None:
    one = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    two = share_weights(one)
    two[0] = nn.Identity()
    assert isinstance(one[0], nn.Linear) and share_weights(one)[0].weight is one[0].weight
