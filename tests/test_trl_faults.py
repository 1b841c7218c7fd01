"""Faults of TRL's last PPO trainer that no other test would catch; docs/coming_from_trl.md lists all 14 with tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain
from test_ppo_stage import config_of, run

from data_schema import Prompt, dedup_prompts, load_all
from pipeline.recipe import load_recipe
from stages.errors import ConfigError
from stages.ppo import learner as ppo_learner
from stages.ppo import stage as ppo
from stages.ppo.roles import Roles


def test_a_data_set_of_one_batch_takes_as_many_steps_as_a_large_one(chain: Chain, tmp_path: Path) -> None:
    """Row 2: on the last batch of the data every micro-batch took an optimiser step; with one batch, always."""
    n = len(dedup_prompts(load_all(config_of(chain).prompts, Prompt, 0)))
    settings = {"rollout_batch": n, "minibatches": 1, "inner_epochs": 2, "micro_batch": 9}
    _, records, _ = run(chain, tmp_path, iterations=2, **settings)
    assert [record["policy/optimizer_steps"] for record in records] == [2, 2]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Roles]:
    """The models that PPO loads."""
    found: list[Roles] = []
    real = ppo_learner.load_roles

    def kept(*arguments: Any) -> Roles:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(ppo_learner, "load_roles", kept)
    return found


@pytest.mark.parametrize("setting", ["bf16", "fp16", "lora.dropout", "num_mini_batches", "lam"])
def test_a_setting_that_would_do_nothing_is_refused(chain: Chain, setting: str) -> None:
    """Rows 4 and 14: bf16 was taken and not applied, and the adapters' dropout was set to 0, both without a word."""
    with pytest.raises(ConfigError, match=f"has no setting '{setting.rpartition('.')[2]}'"):
        load_recipe(chain.path, [f"--ppo.{setting}=1"])


def test_all_of_ppo_computes_in_float32_as_the_documents_say(chain: Chain, tmp_path: Path, seen: list[Roles]) -> None:
    """Row 4, the other half: weights, and what is computed from them, are of one known type."""
    run(chain, tmp_path, iterations=1)
    (roles,) = seen
    models = (roles.policy, roles.reference, roles.value, roles.reward)
    assert {weight.dtype for model in models for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("on", [False, True])
def test_gradient_checkpointing_acts_on_policy_and_value_model(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    """Row 5: the setting was on by default and nothing turned it on. With it, the update's every layer runs twice."""
    passes = {"policy": 0, "value": 0}

    def counted(*arguments: Any, **named: Any) -> Any:
        roles = arguments[0].roles

        def count(name: str) -> Any:
            def hook(*_: Any) -> None:
                passes[name] += 1

            return hook

        handles = [getattr(roles, name).model.layers[0].self_attn.register_forward_hook(count(name)) for name in passes]
        measured = real(*arguments, **named)
        for handle in handles:
            handle.remove()
        return measured

    real = ppo.update
    monkeypatch.setattr(ppo, "update", counted)
    run(chain, tmp_path, iterations=1, minibatches=2, gradient_checkpointing=on)
    assert passes == dict.fromkeys(passes, 4 if on else 2)
