"""Checks before a run of what a recipe asks of its models: layers for adapters, reward models that read the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.architecture import reads_with_encoder
from stages.errors import ConfigError
from stages.ppo.reward_settings import reward_role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_reward_text(
    config: Any, policy: PreTrainedTokenizerBase, source: str, directories: Mapping[str, Path]
) -> None:
    """Raise ConfigError if a reward model (role -> directory) reads a conversation as other ids than the policy, unless
    the recipe lets its text cross over."""
    from policy.errors import ModelError
    from policy.language_model import load_tokenizer
    from stages.ppo.roles import check_same_text

    parts = getattr(config, "rewards", [])
    apart = {reward_role(i) if part.model else "reward_model" for i, part in enumerate(parts) if part.text_crosses_over}
    for role, directory in directories.items():
        if not role.startswith("reward") or role in apart or not (directory / "config.json").is_file():
            continue
        try:
            check_same_text(policy, load_tokenizer(directory), Path(source), directory)
        except ModelError as error:
            raise ConfigError(f"{config.section}.{role}: {error}") from None


def check_adapters(config: Any, source: str) -> None:
    """Raise ConfigError if `lora.targets` names a layer that the stage's model does not have. No weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    from policy.adapters import ALL_LINEAR, check_targets
    from policy.errors import ModelError
    from policy.language_model import load_config

    lora = getattr(config, "lora", None)
    if lora is None or lora.targets.strip() == ALL_LINEAR or reads_with_encoder(source):
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(load_config(source))
        check_targets(model, lora.targets)
    except ModelError as error:
        raise ConfigError(f"{config.section}.{error}") from None


def check_base(source: str, policy: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if evaluate.base_model is no language model, or has other tokens than the policy."""
    from policy.errors import ModelError
    from policy.kinds import check_kind
    from policy.language_model import check_decoder_only, load_config
    from stages.evaluate.fluency import check_base_tokenizer

    try:
        check_decoder_only(source)
        check_kind(load_config(source), source, "language model")
        check_base_tokenizer(source, policy)
    except ModelError as error:
        raise ConfigError(str(error)) from None


def check_role(stage: str, role: str, directory: Path) -> None:
    """Raise ConfigError if a model that is there is not of the kind that the role needs."""
    from policy.errors import ModelError
    from policy.kinds import Wanted, check_files, check_kind
    from policy.language_model import load_config

    if role == "comparisons" or not directory.is_dir():
        return
    wanted: Wanted = "language model" if role in ("sft", "ppo") else "reward model"
    try:
        check_files(directory, wanted)
        check_kind(load_config(directory), directory, wanted)
    except ModelError as error:
        raise ConfigError(f"{stage}.{role}: {error}") from None
