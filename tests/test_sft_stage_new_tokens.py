"""A new EOS is learned with adapters as it is without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_recipe import WORLD, Chain, job
from tiny_models import quickstart_tokenizer, tiny_llama

from data_schema import Prompt, load_all
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from policy.encoding import encode_prompts
from policy.language_model import load_language_model, save_checkpoint
from policy.special_tokens import stop_ids
from stages.answering import sample_answers
from stages.settings import LoraConfig, OptimizerConfig, SamplingConfig
from stages.sft import stage as sft

CPU = torch.device("cpu")


def with_new_eos(directory: Path) -> Path:
    """A model whose tokenizer has an EOS that it has no row for."""
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer, initializer_range=0.02, tie_word_embeddings=True), tokenizer, directory)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(directory)
    return directory


def test_answers_end_with_a_new_eos_that_adapters_learned(chain: Chain, tmp_path: Path) -> None:
    config: Any = load_recipe(chain.path, [f"--sft.base_model={with_new_eos(tmp_path / 'base')}"]).sft
    changes = {"lora": LoraConfig(rank=8), "optimizer": OptimizerConfig(2e-2), "batch_size": 8}
    given = job(tmp_path / "run")
    result = sft.run(type(config)(**vars(config) | changes), given)
    assert result.metrics["lora"]["tokens"] == 1 and 0.3 < result.metrics["lora"]["share"] < 1
    language_model = load_language_model(given.output, CPU)
    eos = language_model.tokenizer.eos_token_id
    assert (
        language_model.tokenizer.convert_ids_to_tokens(eos) == "<end>" and stop_ids(language_model.tokenizer)[0] == eos
    )
    assert language_model.model.config.tie_word_embeddings
    prompts = load_all([Source(path=f"{WORLD}:prompts", limit=48)], Prompt, 0)
    ids = encode_prompts(language_model.tokenizer, [prompt.prompt for prompt in prompts])
    sampling = SamplingConfig(max_new_tokens=24)
    rollout = sample_answers(*language_model, ids, sampling, torch.Generator().manual_seed(0))
    ended = rollout.responses[rollout.ended]
    assert (ended == eos).any(1).float().sum() / len(ids) > 0.5
