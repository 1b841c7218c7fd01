"""bfloat16 in SFT and the reward model: which products are computed in it, what stays float32, and what is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_reward_model_stage as reward_stage
import test_sft_stage as sft_stage
import torch
from safetensors.torch import load_file
from small_recipe import Chain, job
from tiny_models import quickstart_tokenizer, tiny_llama, tiny_t5
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM

from pipeline.__main__ import main
from policy.language_model import save_checkpoint
from stages.errors import ConfigError
from stages.reward_model.settings import RewardModelConfig
from stages.settings import LoraConfig
from stages.sft import stage as sft
from stages.trainer import training_precision

CPU = torch.device("cpu")


@contextmanager
def outputs_of(*kinds: str) -> Iterator[dict[str, set[torch.dtype]]]:
    """Kind of linear layer (the scalar "head", any other "layer") -> types of its outputs in training, in whatever
    model is trained meanwhile."""
    seen: dict[str, set[torch.dtype]] = {kind: set() for kind in kinds}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and isinstance(module, nn.Linear) and isinstance(output, Tensor):
            kind = "head" if module.out_features == 1 else "layer"
            if kind in seen:
                seen[kind].add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def types_of(directory: Path) -> set[torch.dtype]:
    return {tensor.dtype for path in directory.glob("*.safetensors") for tensor in load_file(path).values()}


def published(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_sft_in_bfloat16_multiplies_in_it_publishes_float32_and_leaves_the_next_run_alone(
    chain: Chain, tmp_path: Path
) -> None:
    with outputs_of("layer") as seen:
        _, result, logged = sft_stage.train(chain, tmp_path / "bf16", precision="bfloat16")
    assert seen["layer"] == {torch.bfloat16}  # Hugging Face's Trainer casts on a CPU too
    assert result.metrics["precision"] == "bfloat16"
    assert types_of(tmp_path / "bf16" / "output") == {torch.float32}
    with outputs_of("layer") as seen:
        _, after, exact = sft_stage.train(chain, tmp_path / "float32", precision="float32")
    assert seen["layer"] == {torch.float32}
    # The default on a CPU is float32 bit for bit, also in a process that has trained in bfloat16.
    assert published(tmp_path / "float32" / "output") == published(chain.checkpoint("sft"))
    assert after.metrics["precision"] == "float32"
    losses = [[row["sft/loss"] for row in rows if "sft/loss" in row] for rows in (logged, exact)]
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=0.02) and losses[0] != losses[1]
    assert result.metrics["held_out_loss"] == pytest.approx(after.metrics["held_out_loss"], rel=0.1)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_a_reward_model_in_bfloat16_has_its_head_and_its_loss_in_float32(
    chain: Chain, tmp_path: Path, lora: LoraConfig | None
) -> None:
    runs = {}
    for precision in ("bfloat16", "float32"):
        with outputs_of("layer", "head") as seen:
            output, result = reward_stage.train(chain, tmp_path / precision, precision=precision, lora=lora)
        assert seen["head"] == {torch.float32}
        assert seen["layer"] == {getattr(torch, precision)}
        assert types_of(output) == {torch.float32} and result.metrics["precision"] == precision
        runs[precision] = result.metrics["reward_gain"]  # of scores after training
    assert runs["bfloat16"] == pytest.approx(runs["float32"], rel=0.05) and runs["bfloat16"] != runs["float32"]
    if lora is None:  # the default on a CPU
        assert published(tmp_path / "float32" / "output") == published(chain.checkpoint("reward_model"))


def test_a_model_whose_loss_trl_cannot_fuse_trains_in_bfloat16_too(chain: Chain, tmp_path: Path) -> None:
    """Granite scales its logits, so they come from its own forward pass, from states that may be bfloat16."""
    tokenizer = quickstart_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = GraniteConfig(
        **shape, vocab_size=len(tokenizer), logits_scaling=4.0, eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    save_checkpoint(GraniteForCausalLM(config), tokenizer, tmp_path / "granite")
    losses = []
    for precision in ("bfloat16", "float32"):
        changes = {"base_model": str(tmp_path / "granite"), "precision": precision, "epochs": 0.06}
        _, _, logged = sft_stage.train(chain, tmp_path / precision, **changes)
        losses.append([row["sft/loss"] for row in logged if "sft/loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_an_encoder_decoder_trains_in_bfloat16_too(chain: Chain, tmp_path: Path) -> None:
    save_checkpoint(tiny_t5(quickstart_tokenizer()), quickstart_tokenizer(), tmp_path / "t5")
    found = []
    for precision in ("bfloat16", "float32"):
        given = job(tmp_path / precision)
        config = sft_stage.config_of(chain, base_model=str(tmp_path / "t5"), precision=precision, epochs=0.06)
        found.append(sft.run(config, given).metrics)
        assert types_of(given.output) == {torch.float32}
    assert [metrics["precision"] for metrics in found] == ["bfloat16", "float32"]
    assert found[0]["held_out_loss"] == pytest.approx(found[1]["held_out_loss"], rel=0.02)
    assert found[0]["held_out_loss"] != found[1]["held_out_loss"]


def test_without_a_setting_nothing_is_measured_and_a_cpu_computes_in_float32() -> None:
    assert training_precision(None, CPU, "no such model") == "float32"


def test_auto_is_float32_for_a_narrow_model_on_every_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So that a recipe for a small model gives the same numbers wherever it runs."""
    caplog.set_level("INFO", "triptych")
    save_checkpoint(tiny_llama(quickstart_tokenizer()), quickstart_tokenizer(), tmp_path)
    assert training_precision("auto", CPU, tmp_path) == "float32"
    (line,) = caplog.messages
    assert line.startswith("precision: float32 (")


def test_bfloat16_is_refused_for_a_readout_of_frozen_layers_and_auto_is_float32() -> None:
    with pytest.raises(ConfigError, match=r"frozen_layers is always read in float32; leave precision out"):
        RewardModelConfig(frozen_layers=2, precision="bfloat16")
    RewardModelConfig(frozen_layers=2, precision="auto")


@pytest.mark.parametrize("section", ["sft", "reward_model"])
def test_a_precision_that_is_not_there_is_told_in_a_line(
    chain: Chain, tmp_path: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [section.replace("_", "-"), "--config", str(chain.path), "--root", str(tmp_path)]
    assert main([*command, f"--{section}.precision=float16"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("triptych: ")]
    assert len(told) == 1 and f"{section}.precision" in told[0] and "bfloat16" in told[0]
