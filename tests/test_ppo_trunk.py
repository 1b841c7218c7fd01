"""PPO with `trainable_layers`: the frozen trunk reads each text once, and no number changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_recipe import Chain, job, write_recipe
from tiny_models import quickstart_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from data_schema import Message, Prompt, Source
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.encoding import decode_responses
from policy.errors import ModelError
from policy.language_model import load_language_model, save_checkpoint
from policy.reading.freezing import can_be_parted, freeze_below
from policy.reading.trunk import layers_of
from policy.reading.twin import tiny_twin
from policy.sampling.rollout import Rollout, collect_rollout, read_below, response_logprobs
from reward.frozen_layers import cut_after
from reward.scalar_model import from_language_model, load_scalar_model, response_scores, scalar_head
from reward.sources import score_rollout
from stages.errors import ConfigError
from stages.ppo import trunk
from stages.ppo.learner import begin
from stages.ppo.prompts import shuffles
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import evaluate_rollout, improve
from stages.settings import LoraConfig, OptimizerConfig, SamplingConfig
from workbench.replay.command import command as replay_command

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


def lower_tensors(model: Any, first: int) -> list[int]:
    layers = layers_of(model)[1]
    return [weight.data_ptr() for layer in layers[:first] for weight in layer.parameters()]


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_lower_layers_are_in_memory_once(lora: LoraConfig | None, tmp_path: Path) -> None:
    models = make_models(tmp_path)
    roles = load_roles(models.sft, models.reward_model, CPU, lora, trainable_layers=2)
    of_policy = lower_tensors(roles.policy, 2)
    assert roles.reward is not None
    for model in (roles.reference, roles.value, roles.reward):
        assert lower_tensors(model, 2) == of_policy
    assert not any(weight.requires_grad for layer in layers_of(roles.policy)[1][:2] for weight in layer.parameters())
    assert not roles.policy.get_output_embeddings().weight.requires_grad
    trained = {name for name, weight in roles.policy.named_parameters() if weight.requires_grad}
    assert all(".layers.2." in name or ".layers.3." in name or name == "model.norm.weight" for name in trained)
    assert ("model.norm.weight" in trained) == (lora is None)


def test_each_text_passes_the_frozen_layers_once_an_iteration(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    config = config_of(pretraining_data=[], inner_epochs=3)
    learner = begin(config, models.parents(), 0, CPU)
    roles = learner.roles
    rewards = load_ppo_rewards(config, job(tmp_path, models.parents()), roles)
    rollout = roll_out(roles, config, 1)
    tokens: list[int] = []
    for model in (roles.policy, roles.reference, roles.value, roles.reward):
        assert model is not None
        lowest = layers_of(model)[1][0].self_attn  # a skipped layer does not call its parts
        lowest.register_forward_pre_hook(
            lambda _, args, named: tokens.append(named["hidden_states"].shape[:2].numel()), with_kwargs=True
        )
    rollout = roles.read_trunk(rollout, config, learner.fits.trunk, tmp_path)
    read = sum(tokens)
    assert read >= int(rollout.prompt_mask.sum() + rollout.response_mask.sum())
    asked = [Prompt("p", "test", prompt=(Message("user", "-"),))] * config.rollout_batch
    scores = score_rollout(rewards, asked, ["-"] * config.rollout_batch, rollout)
    experience = evaluate_rollout(roles, rollout, scores, config, config.kl_coef)
    improve(learner, experience, 0.1, None, config, shuffles(8, torch.Generator().manual_seed(0)), 1, [])
    assert sum(tokens) == read


@pytest.mark.parametrize("reward_layers", [3, 1])
def test_a_reward_model_shares_as_many_layers_as_it_left_alone(reward_layers: int, tmp_path: Path) -> None:
    models = make_models(tmp_path, reward_layers=reward_layers)
    roles = load_roles(models.sft, models.reward_model, CPU, None, trainable_layers=2)
    assert roles.trunk is not None and roles.reward is not None
    assert roles.trunk.layers == {min(2, 4 - reward_layers), 2}
    shared = min(2, 4 - reward_layers)
    assert lower_tensors(roles.reward, shared) == lower_tensors(roles.policy, shared)
    # Only a reward model over the same trunk is a start for the values.
    starts_as_reward_model = torch.equal(scalar_head(roles.value).weight, scalar_head(roles.reward).weight)
    assert starts_as_reward_model == (reward_layers == 1)
    if reward_layers == 3:
        assert not scalar_head(roles.value).weight.any()


@pytest.mark.parametrize("frozen_layers", [1, 2, 3])
def test_scores_of_a_reward_model_on_frozen_layers_are_its_own(frozen_layers: int, tmp_path: Path) -> None:
    models = make_models(tmp_path)
    reward = from_language_model(models.sft, CPU, seed=3)
    cut_after(reward, frozen_layers)
    with torch.no_grad():
        for weight in layers_of(reward)[1][-1].parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    save_checkpoint(reward, quickstart_tokenizer(), tmp_path / "cut")
    config = config_of()
    learner = begin(config, {"sft": models.sft, "reward_model": tmp_path / "cut"}, 0, CPU)
    assert learner.roles.trunk is not None and learner.roles.reward is not None
    assert learner.roles.trunk.layers == {min(frozen_layers, 2), 2}
    rollout = roll_out(learner.roles, config, 1)
    through = response_scores(
        learner.roles.reward, learner.roles.read_trunk(rollout, config, learner.fits.trunk, tmp_path)
    )
    alone = response_scores(load_scalar_model(tmp_path / "cut", CPU).eval(), rollout)
    torch.testing.assert_close(through, alone, atol=1e-5, rtol=1e-5)


def test_states_in_a_file_give_the_same_numbers_and_leave_no_file(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    in_memory = train(models, config_of(), folder, True, torch.float32)
    on_disk = train(models, config_of(trunk_memory=0.0), folder, True, torch.float32)
    assert max(differences(in_memory, on_disk)) == 0
    assert not list(folder.iterdir())


def test_states_in_bfloat16_take_half_the_memory_and_are_close(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    learner = begin(config_of(), models.parents(), 0, CPU)
    rollout = roll_out(learner.roles, config_of(), 1)
    kept = [
        learner.roles.read_trunk(rollout, config_of(trunk_states=name), learner.fits.trunk, tmp_path).below
        for name in ("float32", "bfloat16")
    ]
    assert kept[0] is not None and kept[1] is not None
    assert kept[0].flat[2].nbytes == 2 * kept[1].flat[2].nbytes
    torch.testing.assert_close(kept[0].flat[2], kept[1].flat[2].float(), rtol=2**-8, atol=0)


def test_the_published_policy_is_the_whole_model(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    for lora in (None, LORA):
        config = config_of(lora=lora)
        learner = begin(config, models.parents(), 0, CPU)
        with torch.no_grad():
            for weight in learner.optimizers["policy"][0].param_groups[0]["params"]:
                weight.add_(torch.randn_like(weight), alpha=0.05)
        rollout = roll_out(learner.roles, config, 1)
        found = response_logprobs(learner.roles.policy, rollout, 1.0).logprobs
        learner.roles.save_policy(tmp_path / f"published_{lora is None}")
        published = load_language_model(tmp_path / f"published_{lora is None}", CPU).model
        torch.testing.assert_close(response_logprobs(published, rollout, 1.0).logprobs, found, atol=1e-5, rtol=1e-5)
        sft = load_language_model(models.sft, CPU).model
        changed = [
            name
            for name, weight in published.named_parameters()
            if not torch.equal(weight, dict(sft.named_parameters())[name])
        ]
        assert changed and all(".layers.2." in name or ".layers.3." in name or "norm" in name for name in changed)


@pytest.mark.parametrize("n", [4, 9])
def test_more_trainable_layers_than_the_model_has_are_refused(n: int, tmp_path: Path) -> None:
    models = make_models(tmp_path)
    with pytest.raises(ModelError, match=f"trainable_layers is {n}, but the model has 4 layers; set it to at most 3"):
        load_roles(models.sft, models.reward_model, CPU, None, trainable_layers=n)


def test_an_architecture_whose_layers_share_a_cache_is_refused() -> None:
    config = Gemma3nTextConfig()
    assert not can_be_parted(config, CPU)
    with pytest.raises(ModelError, match="Gemma3nForCausalLM does not give the same numbers"):
        freeze_below(tiny_twin(config), 1)


def test_layers_that_share_their_weights_are_refused(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    model = load_language_model(models.sft, CPU).model
    layers = layers_of(model)[1]
    layers[3].mlp = layers[0].mlp
    with pytest.raises(ModelError, match="share their weights with layers below"):
        freeze_below(model, 1)


def test_a_trunk_and_a_shared_backbone_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="trainable_layers and shared_backbone"):
        config_of(shared_backbone=True, lora=LORA)


def test_running_out_of_memory_in_the_trunk_halves_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = make_models(tmp_path)
    config = config_of()
    learner = begin(config, models.parents(), 0, CPU)
    rollout = roll_out(learner.roles, config, 1)
    whole = learner.roles.read_trunk(rollout, config, learner.fits.trunk, tmp_path).below

    def small_memory(model: Any, rollout: Rollout, rows: Tensor, into: Any) -> None:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        read_below(model, rollout, rows, into)

    monkeypatch.setattr(trunk, "read_below", small_memory)
    halved = learner.roles.read_trunk(rollout, config, learner.fits.trunk, tmp_path).below
    assert learner.fits.trunk.rows == 2
    assert whole is not None and halved is not None
    torch.testing.assert_close(whole.flat[2], halved.flat[2], atol=1e-5, rtol=1e-5)


def test_replay_repeats_a_run_with_a_trunk_bit_for_bit(
    chain: Chain, copy_of_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"ppo__trainable_layers": 1, "reward_model__trainable_layers": 1, "evaluate": ...}
    path = write_recipe(tmp_path / "trunk.yaml", chain.recipe, name="trunk", **changes)
    run_pipeline(load_recipe(path), copy_of_chain)
    replay_command(["trunk/ppo", "--root", str(copy_of_chain), "--step", "2", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["difference"] is None
    assert found["compared"] > 20


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_a_reward_model_leaves_the_layers_below_as_they_are(
    lora: dict[str, int] | None, chain: Chain, copy_of_chain: Path, tmp_path: Path
) -> None:
    changes = {"reward_model__trainable_layers": 1, "reward_model__lora": lora, "ppo": ..., "evaluate": ...}
    path = write_recipe(tmp_path / "top.yaml", chain.recipe, name="top", **changes)
    made = chain._replace(root=copy_of_chain, summary=run_pipeline(load_recipe(path), copy_of_chain))
    sft = dict(load_language_model(chain.checkpoint("sft"), CPU).model.named_parameters())
    reward = dict(load_scalar_model(made.checkpoint("reward_model"), CPU).named_parameters())
    same = {name for name in sft.keys() & reward.keys() if torch.equal(sft[name], reward[name])}
    assert {name for name in sft if ".layers.0." in name or "embed" in name} <= same
    assert not {name for name in same if ".layers.1.mlp" in name}
