"""The whole pipeline on models that are not built like Llama."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import small_recipe, write_recipe
from tiny_models import quickstart_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
)

from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.language_model import save_checkpoint

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
CONFIGS: dict[str, PreTrainedConfig] = {
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0, tie_word_embeddings=False),
    "gemma 2": Gemma2Config(**SHAPE, head_dim=8, num_key_value_heads=2, sliding_window=8, final_logit_softcapping=5.0),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),
    "qwen 3.5": Qwen3_5TextConfig(
        **SHAPE, **LINEAR, num_key_value_heads=2, head_dim=8, layer_types=["linear_attention", "full_attention"]
    ),
}
# From random weights: enough for answers that end.
LEARNING: dict[str, Any] = {"sft__epochs": 3, "sft__optimizer__learning_rate": 1e-2, "comparisons__tie_margin": 0.0}
READINGS = {
    "granite": {"logits": "own forward", "rows": "packed", "cache": "padded"},
    "gemma 2": {"logits": "own forward", "rows": "packed", "cache": "padded"},
    "mamba": {"logits": "head", "rows": "padded", "cache": "equal"},
    "qwen 3.5": {"logits": "head", "rows": "padded", "cache": "padded"},
}


@pytest.mark.parametrize("name", ["granite", *(pytest.param(n, marks=pytest.mark.slow) for n in list(CONFIGS)[1:])])
def test_every_stage_runs_and_the_first_minibatch_finds_no_difference(name: str, tmp_path: Path) -> None:
    """PPO stops by itself if sampling and training disagree on a probability. Reward models open as their card says."""
    tokenizer, config = quickstart_tokenizer(), CONFIGS[name]
    config.vocab_size = len(tokenizer) + 3  # three ids without a token
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    save_checkpoint(model, tokenizer, tmp_path / "base")
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", small_recipe(tmp_path / "base"), **LEARNING))
    summary = run_pipeline(recipe, tmp_path / "out", quiet=True)
    folders = {stage: tmp_path / "out/store/checkpoints" / row["key"] for stage, row in summary["stages"].items()}
    assert summary["evaluation"]["ppo"]["kl"] >= 0
    from checkpoint_store import CheckpointStore

    store = CheckpointStore(tmp_path / "out" / "store")
    for stage in ("sft", "reward_model", "ppo"):
        reading = store.manifest(summary["stages"][stage]["key"]).metrics["reading"]
        assert READINGS[name].items() <= reading.items()
    card = (folders["reward_model"] / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:1]
    names: dict[str, Any] = {}
    exec(code.replace('directory = "."', f"directory = {str(folders['reward_model'])!r}"), names)
    messages = [{"role": "user", "content": "name two animals"}, {"role": "assistant", "content": "cat dog ."}]
    assert torch.isfinite(torch.tensor(names["score"](messages)))
