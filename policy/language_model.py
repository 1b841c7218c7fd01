"""Load and save a causal language model with its tokenizer, in plain Hugging Face layout.

Every tokenizer here has a padding token other than EOS. If they were the same, code that masks padding by token id
would also mask EOS, without a warning, and the policy would never learn to end an answer.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from policy.errors import ModelError

logger = logging.getLogger("triptych.model")


class LanguageModel(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def choose_device(name: str) -> torch.device:
    """The device named "auto" (the GPU if there is one), "cpu" or "cuda". Raises ModelError if there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda' but torch sees no GPU here; set device to 'auto' or 'cpu'.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def clear_load_errors(source: str | Path, what: str) -> Iterator[None]:
    """Turn the errors that transformers raises for a missing or unreadable model into one line that says the fix."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1):
        raise ModelError(
            f"no {what} at '{source}': give a directory in Hugging Face layout, or a hub name such as owner/name."
        )
    if path.exists() and not (path / "config.json").is_file():
        raise ModelError(f"'{source}' has no config.json; give the directory of a {what} in Hugging Face layout.")
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        if path.exists():
            raise ModelError(f"cannot load the {what} in '{source}': {_first_line(error)}; check its files.") from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise ModelError(
            f"'{source}' is not a directory in {Path.cwd()} nor available from the hub{offline}: check the path, or "
            f"the hub name and the network, or run 'hf download {source} --local-dir DIR' where it works and give DIR."
        ) from error


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, set to pad on the left for sampling. Its special tokens are not checked here."""
    with clear_load_errors(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", clean_up_tokenization_spaces=False)
    return tokenizer


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Raise ModelError unless the tokenizer has an EOS and a padding token that differ."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of '{source}' has no EOS token, so no answer could end; set its eos_token.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        state = (
            "has no padding token" if tokenizer.pad_token_id is None else f"pads with its EOS {tokenizer.eos_token!r}"
        )
        raise ModelError(
            f"the tokenizer of '{source}' {state}, but padding must be a token other than EOS, or EOS is masked too: "
            "set sft.pad_token to one, for example '<|pad|>' (it is added if the vocabulary lacks it)."
        )


def load_config(source: str | Path) -> PreTrainedConfig:
    """Read a model's config.json, without its weights."""
    with clear_load_errors(source, "language model"):
        return AutoConfig.from_pretrained(source)


def positions(config: PreTrainedConfig) -> int:
    """Number of tokens that a model has positions for, or 2**31 if its config states no limit."""
    return getattr(config, "max_position_embeddings", None) or 2**31


def is_encoder_decoder(source: str | Path) -> bool:
    """Whether a model reads its prompt with a separate encoder (T5, BART)."""
    return bool(load_config(source).is_encoder_decoder)


def check_decoder_only(source: str | Path) -> None:
    """Raise ModelError for an encoder-decoder, of which transformers might load only the decoder."""
    if is_encoder_decoder(source):
        raise ModelError(
            f"'{source}' is an encoder-decoder, which only sft and evaluate-tasks accept; comparisons, reward_model, "
            "ppo and evaluate need a decoder-only language model: give one."
        )


def load_weights(auto_class: Any, source: str | Path) -> PreTrainedModel:
    """Load a model in float32 with an Auto class of transformers. Raises ModelError if the checkpoint lacks weights."""
    if any("ForSequenceClassification" in name for name in load_config(source).architectures or ()):
        # With tied embeddings the check for missing weights below would find none.
        raise ModelError(f"'{source}' is a reward model, which cannot generate text; give a language model.")
    with clear_load_errors(source, "language model"):
        model, loading = auto_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"]:  # transformers initialises them at random and continues
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(
            f"'{source}' lacks weights of a language model: {missing}; give a complete language model's checkpoint."
        )
    return model


def load_language_model(source: str | Path, device: torch.device, pad_token: str | None = None) -> LanguageModel:
    """Load a causal language model in float32 and its tokenizer, from a directory or the hub.

    `pad_token` replaces the tokenizer's own; a token new to the vocabulary gets a new embedding row.
    Raises ModelError if the checkpoint is incomplete or unreadable, or if padding is missing or the same as EOS."""
    tokenizer = load_tokenizer(source)
    check_decoder_only(source)
    return fit_special_tokens(load_weights(AutoModelForCausalLM, source), tokenizer, source, device, pad_token)


def fit_special_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path,
    device: torch.device,
    pad_token: str | None,
) -> LanguageModel:
    """Make model and tokenizer agree on EOS and on a separate padding token; see `load_language_model`."""
    if pad_token is not None and tokenizer.pad_token != pad_token:
        tokenizer.pad_token = pad_token
        if tokenizer.pad_token_id is None or pad_token not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"pad_token": pad_token})
    check_special_tokens(tokenizer, source)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        _grow_vocabulary(model, len(tokenizer))
        logger.info("enlarged the vocabulary of %s to %d for %s", source, len(tokenizer), tokenizer.pad_token)
    _agree(model, tokenizer)
    return LanguageModel(model.to(device), tokenizer)


def _grow_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Add embedding rows equal to the mean of the old rows: no randomness, and no new token starts out likely."""
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[old:] = layer.weight[:old].mean(dim=0)


def _agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special tokens into the model's configs, which serving engines use to stop and pad."""
    # If padding was EOS before, the embedding would still withhold gradients from EOS.
    model.get_input_embeddings().padding_idx = tokenizer.pad_token_id
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
            config.eos_token_id = tokenizer.eos_token_id
    if model.generation_config is not None:
        # Published checkpoints carry sampling settings (repetition penalty, top-p); sampling here is always plain.
        model.generation_config.do_sample = False
        for habit in ("temperature", "top_p", "top_k", "repetition_penalty"):
            setattr(model.generation_config, habit, None)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights (safetensors), configs, tokenizer and its chat template."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off permanently: with it, PPO's first ratio is not 1 and scores are not reproducible."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def bare(model: Any) -> PreTrainedModel:
    """The model inside peft's wrapper, if there is one; its adapters stay active."""
    found: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return found


def add_lora(model: PreTrainedModel, rank: int, alpha: float, targets: str, task_type: str) -> Any:
    """Wrap the model with trainable low-rank adapters (peft's PeftModel); its `merge_and_unload` merges them again.

    task_type "CAUSAL_LM", or "SEQ_CLS", which also trains the scalar head. `targets` as in LoraConfig."""
    from peft import LoraConfig, get_peft_model

    modules = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    # Dropout 0: PPO compares log-probabilities of one text before and after a step; dropout would change them.
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=modules, task_type=task_type)
    try:
        with warnings.catch_warnings():  # peft reads a transformers attribute under its deprecated name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets '{targets}' does not fit this model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
