"""`ppo.preset`: the settings of published runs below whatever a recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoint_store import CheckpointStore
from pipeline.plan import plan_pipeline
from pipeline.recipe import as_yaml, load_recipe
from stages.errors import ConfigError
from stages.optimizer import make_optimizer
from stages.ppo.settings import PpoConfig
from stages.settings import OptimizerConfig


def recipe(folder: Path, name: str = "my", **ppo: Any) -> Path:
    """A recipe that says as little as it may, and `ppo`."""
    rows = {
        "name": name,
        "sft": {"base_model": str(folder), "data": "sft.jsonl"},
        "reward_model": {"data": "comparisons.jsonl"},
        "ppo": {"prompts": "prompts.jsonl", "pretraining_data": "text.txt", **ppo},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(rows))
    return path


def ppo_of(path: Path, *overrides: str) -> PpoConfig:
    config = load_recipe(path, overrides).ppo
    assert config is not None
    return config


def test_instructgpt_is_appendix_c4(tmp_path: Path) -> None:
    config = ppo_of(recipe(tmp_path, preset="instructgpt"))
    assert config.iterations * config.rollout_batch == 256_000  # episodes
    assert config.rollout_batch // config.minibatches == 64 and config.inner_epochs == 1
    assert config.pretraining_rows * config.minibatches == 8 * config.rollout_batch
    assert (config.kl_coef, config.kl_target, config.pretraining_coef, config.ema_decay) == (0.02, None, 27.8, 0.992)
    assert (config.gamma, config.clip_range, config.sampling.temperature) == (1.0, 0.2, 1.0)
    assert config.optimizer.schedule == "constant" and config.optimizer.warmup_steps == 10
    assert 2.55e-6 <= config.optimizer.learning_rate <= 2.55e-5  # the range that was searched
    assert config.value_optimizer.learning_rate == 9e-6


def test_tldr_is_summarize_from_feedback_details(tmp_path: Path) -> None:
    config = ppo_of(recipe(tmp_path, preset="tldr"))
    assert config.iterations == 1_000_000 // 512 and config.rollout_batch == 512
    assert (config.minibatches, config.inner_epochs) == (1, 4)
    assert (config.max_prompt_length, config.sampling.max_new_tokens, config.sampling.temperature) == (512, 53, 0.7)
    assert (config.kl_coef, config.kl_target, config.score_without_eos, config.whiten_rewards) == (
        0.05,
        None,
        -1,
        False,
    )
    assert (config.gamma, config.gae_lambda, config.clip_range, config.value_clip_range) == (1, 0.95, 0.2, 0.2)
    assert (config.ema_decay, config.mixes_text) == (None, False)
    for optimizer in (config.optimizer, config.value_optimizer):
        assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (3e-6, "linear", 0)
        assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.999), 0.01)
        assert optimizer.max_grad_norm >= 1e6


def test_a_value_loss_that_counts_a_tenth_is_ten_times_adam_s_epsilon(tmp_path: Path) -> None:
    """The preset's value optimiser steps as its source's one optimiser does on 0.1 times the value loss."""
    config = ppo_of(recipe(tmp_path, preset="tldr"))
    plain, tenth = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    ours = make_optimizer([plain], config.value_optimizer, 10)[0]
    theirs = make_optimizer([tenth], replace(config.value_optimizer, eps=config.optimizer.eps), 10)[0]
    for seed in range(3):
        gradient = 1e-4 * torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        plain.grad, tenth.grad = gradient, 0.1 * gradient
        ours.step()
        theirs.step()
    assert (plain - 1).abs().min() > 1e-8
    torch.testing.assert_close(plain, tenth, rtol=0, atol=1e-13)


def test_what_a_recipe_says_wins_wherever_it_says_it(tmp_path: Path) -> None:
    base = recipe(tmp_path, kl_coef=0.3, optimizer={"learning_rate": 1.0})
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"extends": base.name, "ppo": {"preset": "tldr", "gae_lambda": 0.5}}))
    config = ppo_of(child, "--ppo.sampling.max_new_tokens=7", "--ppo.value_optimizer={eps: 0.5}")
    assert (config.kl_coef, config.gae_lambda, config.optimizer.learning_rate) == (0.3, 0.5, 1.0)
    assert (config.sampling.max_new_tokens, config.value_optimizer.eps) == (7, 0.5)
    # The rest of those sections is the preset's.
    assert (config.optimizer.schedule, config.sampling.temperature, config.value_optimizer.schedule) == (
        "linear",
        0.7,
        "linear",
    )
    assert ppo_of(child, "--ppo.preset=null").inner_epochs == 1


@pytest.mark.parametrize(
    ("said", "rows"), [({}, 512), ({"rollout_batch": 64}, 64), ({"minibatches": 1}, 4096), ({"pretraining_rows": 3}, 3)]
)
def test_the_share_of_text_is_eight_rows_an_episode_whatever_the_batch(
    tmp_path: Path, said: dict[str, int], rows: int
) -> None:
    assert ppo_of(recipe(tmp_path, preset="instructgpt", **said)).pretraining_rows == rows


def test_without_text_the_papers_preset_says_what_to_do(tmp_path: Path) -> None:
    path = recipe(tmp_path, preset="instructgpt", pretraining_data=[])
    with pytest.raises(ConfigError, match=r"data is empty; add plain text .* set ppo.pretraining_coef to 0"):
        load_recipe(path)
    assert not ppo_of(path, "--ppo.pretraining_coef=0").mixes_text


def test_a_printed_config_shows_what_applies_and_is_the_same_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, row in (
        ("sft", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
        ("comparisons", '{"prompt": "a", "chosen": "b", "rejected": "c"}'),
        ("prompts", '{"prompt": [{"role": "user", "content": "a"}]}'),
    ):
        Path(f"{name}.jsonl").write_text(row + "\n")
    Path("text.txt").write_text("words\n")
    first = load_recipe(recipe(tmp_path, preset="instructgpt", iterations=7))
    shown = as_yaml(first)
    assert "preset: instructgpt" in shown and "ema_decay: 0.992" in shown and "iterations: 7" in shown
    (tmp_path / "printed.yaml").write_text(shown)
    assert load_recipe(tmp_path / "printed.yaml") == first
    # Spelled out without the name, it is the same work.
    (tmp_path / "spelled.yaml").write_text(shown.replace("preset: instructgpt", "preset: null"))
    keys = [
        plan_pipeline(load_recipe(tmp_path / f"{name}.yaml"), CheckpointStore(tmp_path / "store"))[-1].key
        for name in ("my", "spelled")
    ]
    assert keys[0] == keys[1]


def test_without_a_preset_the_defaults_are_untouched(tmp_path: Path) -> None:
    config = ppo_of(recipe(tmp_path))
    assert config == PpoConfig(config.prompts, pretraining_data=config.pretraining_data)
    assert config.optimizer == OptimizerConfig(schedule="constant", warmup_steps=10, eps=1e-5)
