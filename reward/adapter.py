"""A reward model trained with LoRA, stored as its difference from the language model: an adapter and a head.

A published reward model is complete, with its adapter merged. In addition, `adapter/` contains the adapter (PEFT's
files) and the hash of its base weights, so that PPO can apply reward and value to the SFT model already in memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel

from policy.errors import ModelError
from policy.language_model import load_config
from policy.memory.shared_weights import share_weights
from reward.classes import scalar_class
from reward.scalar_model import scalar_head

FOLDER, BASE = "adapter", "base.json"
CARD = """
## Adapter

`adapter/` contains the changes that training made to the SFT model, as a PEFT adapter with its head. Use it if the SFT
model is already in memory (as in triptych's PPO with `shared_backbone`). `model.safetensors` has it merged.
"""
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names


def write_adapter(directory: Path, model: Any, base: Path) -> None:
    """Write the first adapter of a peft model, with its head, next to the complete model in `directory`. `base` is the
    checkpoint that it was trained on."""
    from peft import get_peft_model_state_dict

    folder = directory / FOLDER
    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model, adapter_name="default")
    save_file({name: part.detach().cpu().contiguous() for name, part in state.items()}, folder / WEIGHTS)
    settings = adapter_settings(model.peft_config["default"])
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / BASE).write_text(json.dumps({"weights_sha256": weights_hash(base)}, indent=2) + "\n")


def adapter_settings(lora: Any) -> dict[str, Any]:
    """peft's settings as JSON without local paths."""
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in lora.to_dict().items()}
    return settings | {"base_model_name_or_path": None, "inference_mode": True}


def weights_hash(directory: Path) -> str:
    """sha256 of a checkpoint's weight files; a copy with another tokenizer or manifest has the same hash."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def why_no_adapter(directory: Path, base: Path) -> str | None:
    """The reason why a reward model cannot share the weights of `base`, or None if it can."""
    told = directory / FOLDER / BASE
    if not told.is_file():
        return "it was published without an adapter (trained in full, or by an earlier version)"
    if json.loads(told.read_text())["weights_sha256"] != weights_hash(base):
        return "it was trained on other weights"
    return None


def scalar_model_over(language_model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a scalar model of this config that shares the weights of a language model's body; its head is 0.

    Raises ModelError if the classifier and the language model of this family have different bodies."""
    with torch.device("meta"):
        model: PreTrainedModel = scalar_class(config)._from_config(config)
    name = model.base_model_prefix
    body = getattr(language_model, name, None)
    if body is None or type(body) is not type(getattr(model, name)):
        raise ModelError(
            f"{type(model).__name__} and {type(language_model).__name__} have different bodies, so they cannot share "
            "one; set ppo.shared_backbone to false."
        )
    setattr(model, name, share_weights(body))
    head = scalar_head(model).to_empty(device=language_model.device)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return model.eval()


def adapted_scalar_model(directory: Path, language_model: PreTrainedModel, trainable: bool) -> Any:
    """Load the reward model in `directory` as its adapter and head on a language model (peft's PeftModel). It must be
    the model on which it was trained; see `why_no_adapter`."""
    from peft import PeftModel

    model = scalar_model_over(language_model, load_config(directory))
    with warnings.catch_warnings():  # as in policy.adapters.add_lora
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return PeftModel.from_pretrained(model, directory / FOLDER, is_trainable=trainable).eval()
