"""Predicted memory and work with a frozen trunk, against counts by hand and against PPO's own models."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import small_recipe, write_recipe
from test_ppo_trunk import CPU, config_of, make_models, roll_out
from tiny_models import quickstart_tokenizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from policy.language_model import LanguageModel, load_config, save_checkpoint
from policy.reading.ways import reading_of
from reward.frozen_layers import cut_after
from reward.scalar_model import from_language_model, response_scores
from reward.sources import RolloutScores
from stages.errors import ConfigError
from stages.ppo.learner import make_learner
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import evaluate_rollout, policy_gradient, value_gradient
from stages.reward_model.settings import RewardModelConfig
from stages.settings import LoraConfig, SamplingConfig
from workbench.plan.command import command
from workbench.plan.live import LiveMemory
from workbench.plan.passes import Models, read, update
from workbench.plan.prediction import predict

LORA = LoraConfig(rank=4, alpha=8)
TOP = RewardModelConfig(trainable_layers=1)
PROMPT = 24
WIDE = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4
)  # fmt: skip


def trunk(**changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "trainable_layers": 1,
        "rollout_batch": 16,
        "minibatches": 2,
        "micro_batch": 0,
        "sampling": SamplingConfig(max_new_tokens=8, batch_size=16),
    }
    return config_of(**settings | changes)


def bytes_of(*modules: nn.Module) -> int:
    """Each tensor of weights once, however many modules have it."""
    return sum({id(weight): weight.nbytes for module in modules for weight in module.parameters()}.values())


def trained(model: nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)


def test_only_what_trains_has_copies_gradients_and_moments(tiny_base: Path, tiny: LanguageModel) -> None:
    whole = bytes_of(tiny.model)
    upper = bytes_of(tiny.model.model.layers[1], tiny.model.model.norm)
    head = 32 * 4
    roles = predict(trunk(), tiny_base, PROMPT, TOP).roles
    assert [(r.name, r.weights, r.gradients, r.optimizer, r.on_disk) for r in roles] == [
        ("policy", whole, upper, 2 * upper, False),
        ("reference", upper, 0, 0, False),
        ("value", upper + head, upper + head, 2 * (upper + head), False),
        ("reward", upper + head, 0, 0, False),
    ]
    reward_in_full = predict(trunk(), tiny_base, PROMPT).roles[3]
    assert reward_in_full.weights == whole - tiny.model.lm_head.weight.nbytes + head
    assert predict(trunk(), tiny_base, PROMPT, None).roles[3].weights == 0


def reward_of(models: Any, directory: Path, settings: RewardModelConfig) -> Path:
    """A reward model as these settings leave it: all of it differs from the SFT model, or its upper layers."""
    if settings.trainable_layers is not None:
        return Path(models.reward_model)
    reward = from_language_model(models.sft, CPU, seed=2)
    if settings.frozen_layers is not None:
        cut_after(reward, settings.frozen_layers)
    last = reward.model.layers[-1] if settings.frozen_layers is not None else reward
    with torch.no_grad():
        for weight in last.parameters():
            weight.add_(1.0)
    save_checkpoint(reward, quickstart_tokenizer(), directory / "other")
    return directory / "other"


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize(
    "settings", [{"trainable_layers": 1}, {"trainable_layers": 3}, {"frozen_layers": 1}, {"frozen_layers": 3}, {}]
)
def test_the_planned_weights_are_those_of_the_loaded_roles(
    settings: dict[str, Any], lora: LoraConfig | None, tmp_path: Path
) -> None:
    reward = RewardModelConfig(**settings)
    models = make_models(tmp_path, reward_layers=reward.trainable_layers or 1)
    config = config_of(lora=lora)
    roles = load_roles(models.sft, reward_of(models, tmp_path, reward), CPU, lora, trainable_layers=2)
    assert roles.trunk is not None and roles.reward is not None
    plan = predict(config, models.sft, PROMPT, reward)
    assert [role.gradients for role in plan.roles] == [trained(roles.policy), 0, trained(roles.value), 0]
    held = bytes_of(roles.policy, roles.reference, roles.value, roles.reward)
    head = roles.policy.config.hidden_size * 4  # a value model made for adapters has a head below its own
    assert sum(role.weights for role in plan.roles) in (held, held - head)
    rollout = roles.read_trunk(roll_out(roles, config, 1), config, make_learner(roles, config).fits.trunk, tmp_path)
    assert rollout.below is not None
    tokens = int(rollout.below.lengths.sum())
    shape = replace(config, rollout_batch=1, minibatches=1, sampling=SamplingConfig(max_new_tokens=1))
    per_token = predict(shape, models.sft, tokens - 1, reward).trunk_states
    assert per_token == sum(states.nbytes for states in rollout.below.flat.values())


def test_kept_states_are_a_vector_for_each_token_in_memory_or_in_a_file(tiny_base: Path) -> None:
    def plan(**changes: Any) -> Any:
        return predict(trunk(**changes), tiny_base, PROMPT, TOP)

    kept = 16 * (PROMPT + 8) * 32 * 4
    in_memory, rounded, in_file = plan(), plan(trunk_states="bfloat16"), plan(trunk_memory=0.0)
    assert (in_memory.trunk_states, rounded.trunk_states) == (kept, kept // 2)
    assert in_file.trunk_states == kept and in_file.trunk_states_on_disk and not in_memory.trunk_states_on_disk
    assert in_memory.held - in_file.held == kept


class FlopMeter:
    """Counts the operations of matrix products, by phase."""

    def __init__(self) -> None:
        self.flops: dict[str, float] = {}

    def run(self, name: str, times: float, work: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = work()
        self.flops[name] = self.flops.get(name, 0.0) + times * counter.get_total_flops()
        return result

    def prepare(self, work: Any) -> None:
        work()


def test_the_trunk_is_read_once_and_all_else_is_of_the_upper_layers(tiny_base: Path, tiny: LanguageModel) -> None:
    layer = sum(p.numel() for name, p in tiny.model.model.layers[0].named_parameters() if "proj" in name)
    output = tiny.model.lm_head.weight.numel()
    config, meter = trunk(), FlopMeter()
    models = Models(load_config(tiny_base), config, CPU, TOP)
    for model in models.all():
        reading_of(model)  # tried here, not while products are counted
    read(meter, models, config, PROMPT)
    update(meter, models, config, PROMPT, lambda *_: None)
    texts, answers = 16 * (PROMPT + 8), 16 * 8
    epochs = config.inner_epochs

    def about(found: float, products: float) -> None:
        assert 1 <= found / products < 1.1  # the rest is attention

    about(meter.flops["reading the trunk"], 2 * layer * texts)
    # Four models read one layer each; two of them multiply answers by the output head.
    about(meter.flops["reading"], 4 * 2 * layer * texts + 2 * 2 * output * answers)
    # The head has no gradient of its own: one product forward, and one backward to the states.
    about(meter.flops["update of the policy"], epochs * (6 * layer * texts + 4 * output * answers))
    about(meter.flops["update of the value model"], epochs * 6 * layer * texts)


class OfRealTensors(LiveMemory):
    """Counts while values are computed too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return func(*args)
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_the_predicted_memory_of_the_phases_is_that_of_ppo_s_own_functions(tmp_path: Path) -> None:
    config = config_of(rollout_batch=32, minibatches=1, micro_batch=0, sampling=SamplingConfig(24, 1.0, 32))
    models = make_models(tmp_path)
    roles: Roles = load_roles(models.sft, models.reward_model, CPU, None, trainable_layers=2)
    rollout = roll_out(roles, config, 1)
    full = rollout._replace(response_mask=torch.ones_like(rollout.response_mask))  # as if none had ended early
    width = full.responses.shape[1]
    prompt = int(full.prompt_mask.sum(1).max())
    full = full._replace(prompts=full.prompts.clamp(min=5), prompt_mask=torch.ones_like(full.prompt_mask))
    config = replace(config, sampling=SamplingConfig(width, 1.0, 32))
    plan = predict(config, models.sft, prompt, TOP)
    weights = [weight for model in (roles.policy, roles.reference, roles.value, roles.reward) if model is not None
               for weight in model.parameters()]  # fmt: skip
    with OfRealTensors(weights) as live:
        read = roles.read_trunk(full, config, make_learner(roles, config).fits.trunk, tmp_path)
        assert read.below is not None
        kept = live.now
        with torch.no_grad():
            scores = response_scores(roles.reward, read)
        experience = evaluate_rollout(roles, read, RolloutScores(scores, torch.zeros_like(scores), {}), config, 0.1)
        passes = {
            "update of the policy": partial(policy_gradient, roles, experience, torch.arange(32), None, config, None),
            "update of the value model": partial(value_gradient, roles, experience, torch.arange(32), config),
        }
        found = {}
        for name, gradient in passes.items():
            live.restart_peak()
            gradient(32)
            found[name] = live.peak - kept
            roles.policy.zero_grad()
            roles.value.zero_grad()
    assert kept >= plan.trunk_states > 0
    for name, peak in found.items():
        assert plan.phases[name] == pytest.approx(peak, rel=0.15), name


def test_the_command_knows_what_the_recipe_s_reward_model_shares(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {}
    WIDE.save_pretrained(tmp_path)
    for layers in (None, 1):
        path = write_recipe(
            tmp_path / "small.yaml", small_recipe(small_base), ppo__trainable_layers=1,
            reward_model__trainable_layers=layers,
        )  # fmt: skip
        command([str(path), "--json", "--no-time", "--model", str(tmp_path)])
        own[layers] = json.loads(capsys.readouterr().out)
    roles = own[1]["roles"]
    assert roles["reward"]["weights"] == roles["value"]["weights"] < own[None]["roles"]["reward"]["weights"]
    assert own[1]["trunk_states"] > 0 and not own[1]["trunk_states_on_disk"]
    command([str(path), "--no-time", "--model", str(tmp_path), "--ppo.trunk_memory", "0"])
    assert "the trunk's states of an iteration take" in (shown := capsys.readouterr().out) and "in a file" in shown
    with pytest.raises(ConfigError, match=r"^ppo\.trainable_layers is 4, but .* has 4 layers; set it to at most 3"):
        command([str(path), "--no-time", "--model", str(tmp_path), "--ppo.trainable_layers", "4"])
