"""`triptych check` on the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_recipe import Chain
from tiny_models import quickstart_tokenizer
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from pipeline.__main__ import main
from policy.language_model import save_checkpoint


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The rows of the table by what they are about."""
    capsys.readouterr()
    assert main(["check", *words, "--json"]) == 0
    return {row["about"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_llama_is_exact_throughout(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = checked(capsys, str(tiny_base))
    assert all(row["state"] == "exact" for about, row in rows.items() if about != "chat template"), rows
    assert rows["positions"]["found"] == "128 tokens"
    assert rows["logits of a text"]["found"].startswith("differ by 0")


def test_the_table_names_the_slower_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = quickstart_tokenizer()
    config = GraniteConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        logits_scaling=8.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_checkpoint(GraniteForCausalLM(config), tokenizer, tmp_path)
    assert main(["check", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "by the model's own forward pass, since they are not its output embedding times its states" in shown
    assert "triptych's own scalar head on its body" in shown and "exact in a slower way" in shown
    rows = checked(capsys, str(tmp_path))
    assert rows["vocabulary"]["found"].endswith("; 3 rows without a token are never sampled")
    assert rows["logits of a text"]["state"] == "exact"


def test_the_table_says_whether_upper_layers_can_be_trained_alone(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(capsys, str(tiny_base), "--config-only")["frozen trunk"]["state"] == "exact"
    tokenizer = quickstart_tokenizer()
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4)
    save_checkpoint(OpenAIGPTLMHeadModel(config), tokenizer, tmp_path)
    row = checked(capsys, str(tmp_path), "--config-only")["frozen trunk"]  # and the model can be used
    assert row["state"] == "refused" and row["found"].endswith("leave trainable_layers out")


def test_a_model_that_reads_both_ways_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = quickstart_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    save_checkpoint(BertLMHeadModel(config), tokenizer, tmp_path)
    assert main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "reads text in both directions" in error


def test_weights_that_are_not_finite_are_refused(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["check", str(tmp_path)]) == 2
    assert "1 tensors have values that are not finite, such as model.norm.weight" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--config-only"]) == 0


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_checkpoint_is_found_by_its_name(chain: Chain, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = checked(capsys, f"small/{stage}", "--root", str(chain.root))
    assert rows["weights"]["state"] == "exact" and rows["padding"]["state"] == "exact"
