"""PPO with `trainable_layers`: the frozen trunk reads each text once, and no number changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_recipe import job
from tiny_models import quickstart_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from data_schema import Message, Prompt, Source
from policy.encoding import decode_responses
from policy.errors import ModelError
from policy.language_model import load_language_model, save_checkpoint
from policy.reading.freezing import can_be_parted, freeze_below
from policy.reading.trunk import layers_of
from policy.sampling.rollout import Rollout, collect_rollout
from reward.scalar_model import from_language_model, scalar_head
from reward.sources import score_rollout
from stages.errors import ConfigError
from stages.ppo.learner import begin
from stages.ppo.prompts import shuffles
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import evaluate_rollout, improve
from stages.settings import LoraConfig, OptimizerConfig, SamplingConfig

CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
}
ARCHITECTURES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**SHAPE, **more),
    "llama, tied": lambda **more: LlamaConfig(**SHAPE, tie_word_embeddings=True, **more),
    "qwen3": lambda **more: Qwen3Config(**SHAPE, **more),
    "gpt2": lambda **more: GPT2Config(n_embd=32, n_layer=4, n_head=4, initializer_range=0.3, **more),
}


class Models(NamedTuple):
    """Checkpoints of a chain whose reward model differs from the SFT model in its upper layers."""

    sft: Path
    reward_model: Path

    def parents(self) -> dict[str, Path]:
        return {"sft": self.sft, "reward_model": self.reward_model}


def make_models(directory: Path, architecture: str = "llama", reward_layers: int = 1) -> Models:
    tokenizer = quickstart_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](**ids))
    save_checkpoint(model, tokenizer, directory / "sft")
    reward = from_language_model(directory / "sft", CPU, seed=1)
    freeze_below(reward, reward_layers)
    with torch.no_grad():
        for weight in reward.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    save_checkpoint(reward, tokenizer, directory / "reward_model")
    return Models(directory / "sft", directory / "reward_model")


def config_of(**changes: Any) -> PpoConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", eps=1e-5)
    settings: dict[str, Any] = {
        "prompts": [Source("unused.jsonl")],
        "trainable_layers": 2,
        "iterations": 3,
        "rollout_batch": 8,
        "minibatches": 2,
        "micro_batch": 3,
        "inner_epochs": 2,
        "kl_coef": 0.1,
        "optimizer": optimizer,
        "value_optimizer": optimizer,
        "sampling": SamplingConfig(max_new_tokens=10, batch_size=5),
    }
    return PpoConfig(**settings | changes)


def roll_out(roles: Roles, config: PpoConfig, seed: int) -> Rollout:
    rng = torch.Generator().manual_seed(seed)
    size = roles.policy.config.vocab_size
    lengths = [3 + i % 5 for i in range(config.rollout_batch)]
    prompts = [torch.randint(5, size, (n,), generator=rng).tolist() for n in lengths]
    return collect_rollout(
        roles.policy,
        prompts,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=1.0,
        batch_size=config.sampling.batch_size,
        stop_ids=[roles.tokenizer.eos_token_id, 7, 8, 9],  # so that answers differ in length
        pad_id=roles.tokenizer.pad_token_id,
        rng=rng,
    )


class Trained(NamedTuple):
    metrics: list[dict[str, float]]
    experience: list[dict[str, Tensor]]
    gradients: list[Tensor]
    weights: list[Tensor]


def train(models: Models, config: PpoConfig, tmp_path: Path, through_trunk: bool, dtype: torch.dtype) -> Trained:
    """Three iterations with pretraining text; either through the trunk's states, or reading whole models each time."""
    learner = begin(config, models.parents(), 0, CPU)
    roles = learner.roles
    for model in (roles.policy, roles.reference, roles.value, roles.reward):
        model.to(dtype)
    rewards = load_ppo_rewards(config, job(tmp_path, models.parents()), roles)
    orders = shuffles(config.rollout_batch, torch.Generator().manual_seed(0))
    text = torch.randint(5, roles.policy.config.vocab_size, (64, 12), generator=torch.Generator().manual_seed(5))
    found = Trained([], [], [], [])
    asked = [Prompt("p", "test", prompt=(Message("user", "-"),))] * config.rollout_batch
    for iteration in range(1, 4):
        rollout = roll_out(roles, config, iteration)
        if through_trunk:
            rollout = roles.read_trunk(rollout, config, learner.fits.trunk, tmp_path)
            assert rollout.below is not None
        texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
        scores = score_rollout(rewards, asked, texts, rollout)
        experience = evaluate_rollout(roles, rollout, scores, config, config.kl_coef)
        steps: list[dict[str, float]] = []
        rows = iter(text.split(2)) if config.mixes_text else None
        found.metrics.append(improve(learner, experience, config.kl_coef, rows, config, orders, iteration, steps))
        found.metrics.extend(steps)
        tensors = experience._asdict().items()
        found.experience.append({name: value for name, value in tensors if isinstance(value, Tensor)})
    for model in (roles.policy, roles.value):
        found.weights.extend(weight.detach() for weight in model.parameters() if weight.requires_grad)
    return found


def differences(one: Trained, other: Trained) -> list[float]:
    rows = zip(one.metrics, other.metrics, strict=True)
    scalars = [abs(a[name] - b[name]) / max(1.0, abs(a[name])) for a, b in rows for name in a]
    pairs = [(a[name], b[name]) for a, b in zip(one.experience, other.experience, strict=True) for name in a]
    pairs += zip(one.weights, other.weights, strict=True)
    return scalars + [float((a - b).abs().max()) for a, b in pairs]


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_updates_through_the_trunk_equal_those_that_read_whole_models(
    architecture: str, lora: LoraConfig | None, tmp_path: Path
) -> None:
    models = make_models(tmp_path, architecture)
    config = config_of(lora=lora, pretraining_data=[Source("unused.txt")], pretraining_coef=0.5)
    exact = differences(*(train(models, config, tmp_path, through, torch.float64) for through in (True, False)))
    assert max(exact) < 1e-10
    single = differences(*(train(models, config, tmp_path, through, torch.float32) for through in (True, False)))
    assert max(single) < 1e-5
