"""Checks before a run that a model's upper layers can be trained alone, as `trainable_layers` asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.architecture import reads_with_encoder
from stages.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_trainable_layers(config: Any, source: str) -> None:
    """Raise ConfigError if the model at `source` has too few layers for the stage's `trainable_layers`, or does not
    give the same numbers when it is read in two parts, or if `lora.targets` names none of the layers that train. No
    weights are read."""
    if getattr(config, "trainable_layers", None) is None or reads_with_encoder(source):
        return
    from policy.language_model import load_config

    described = load_config(source)
    setting, wanted = f"{config.section}.trainable_layers", config.trainable_layers
    n = getattr(described.get_text_config(), "num_hidden_layers", None)
    if n is not None and wanted >= n:
        raise ConfigError(
            f"{setting} is {wanted}, but '{source}' has {n} layers; set it to at most {n - 1}, or leave it out to "
            "train them all"
        )
    if not parted(described):
        raise ConfigError(
            f"{setting} is set, but '{source}' is a model of type '{described.model_type}', whose upper layers do not "
            "give the same numbers from the states of its lower ones; leave it out, or use another architecture "
            "(docs/models.md)"
        )
    lora = getattr(config, "lora", None)
    if lora is not None:
        check_targets_above(lora.targets, described, wanted, config.section)


def parted(config: PreTrainedConfig) -> bool:
    """Whether the architecture can be read in two parts; also True if only the loaded model can tell."""
    import torch

    from policy.errors import ModelError
    from policy.reading.freezing import can_be_parted

    try:
        return can_be_parted(config, torch.device("cpu"))
    except ValueError:
        return True
    except ModelError as error:
        raise ConfigError(str(error)) from None


def check_targets_above(targets: str, config: PreTrainedConfig, wanted: int, section: str) -> None:
    """Raise ConfigError if `lora.targets` names no linear layer in the model's upper `wanted` layers."""
    import torch
    from transformers import AutoModelForCausalLM

    from policy.adapters import ALL_LINEAR, check_targets
    from policy.errors import ModelError
    from policy.reading.trunk import layers_of

    if targets.strip() == ALL_LINEAR:
        return
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    try:
        named = [name for names in check_targets(model, targets).values() for name in names]
        upper = {id(part) for layer in layers_of(model)[1][-wanted:] for part in layer.modules()}
    except ModelError as error:
        raise ConfigError(f"{section}.{error}") from None
    if not any(id(model.get_submodule(name)) in upper for name in named):
        raise ConfigError(
            f"{section}.lora.targets '{targets}' names no layer among the upper {wanted}, which alone train "
            f"({section}.trainable_layers); name layers without their number, or set '{ALL_LINEAR}'"
        )
