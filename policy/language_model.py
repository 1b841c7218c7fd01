"""Load and save a causal language model with its tokenizer, in plain Hugging Face layout.

Every tokenizer here has a padding token other than EOS. If they were the same, code that masks padding by token id
would also mask EOS, without a warning, and the policy would never learn to end an answer.
"""

from __future__ import annotations

import logging
import os
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

from policy.errors import ModelError, first_line
from policy.kinds import Wanted, check_all_is_used, check_files, check_kind, unreadable
from policy.special_tokens import (
    check_special_tokens,
    hide_ids_without_token,
    mark_new_ids,
    name_special_tokens,
    read_stop_ids,
    vocabulary_size,
)

logger = logging.getLogger("triptych.model")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length")
# What transformers, tokenizers and safetensors raise for files that are missing, damaged, or of another kind.
UNREADABLE = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class LanguageModel(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def choose_device(name: str) -> torch.device:
    """The device named "auto" (the GPU if there is one), "cpu" or "cuda". Raises ModelError if there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda' but torch sees no GPU here; set device to 'auto' or 'cpu'.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32, which a program or its container may have switched on, has 10 bits: the checks of how a model is read
        # would find no exact way.
        torch.set_float32_matmul_precision("highest")
    return torch.device(name)


@contextmanager
def clear_load_errors(source: str | Path, what: Wanted) -> Iterator[None]:
    """Turn the errors that transformers raises for a missing or unreadable model into one line that says the fix."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1):
        raise ModelError(
            f"no {what} at '{source}': give a directory in Hugging Face layout, or a hub name such as owner/name."
        )
    check_files(source, what)
    try:
        yield
    except ModelError:
        raise
    except UNREADABLE as error:
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise  # the files are not the cause
        if (why := unreadable(source, str(error))) is not None:
            raise ModelError(f"'{source}' {why}") from error
        if path.exists():
            raise ModelError(f"cannot load the {what} in '{source}': {first_line(error)}; check its files.") from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise ModelError(
            f"'{source}' is not a directory in {Path.cwd()} nor available from the hub{offline}: check the path, or "
            f"the hub name and the network, or run 'hf download {source} --local-dir DIR' where it works and give DIR."
        ) from error


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, set to pad on the left for sampling. Its special tokens are not checked here."""
    with clear_load_errors(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="left", clean_up_tokenization_spaces=False, trust_remote_code=False
        )
    read_stop_ids(tokenizer, source)
    return tokenizer


def load_config(source: str | Path) -> PreTrainedConfig:
    """Read a model's config.json, without its weights."""
    with clear_load_errors(source, "language model"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int) and isinstance(text.pad_token_id, int) and not -size <= text.pad_token_id < size:
        text.pad_token_id = None  # no row of the embedding has it; the tokenizer's is used
    return config


def positions(config: PreTrainedConfig) -> int:
    """Number of tokens that a model has positions for, or 2**31 if its config states no limit."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in POSITIONS)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), 2**31)


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
    config = load_config(source)
    check_kind(config, source, "language model")
    with clear_load_errors(source, "language model"):
        model, loading = auto_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    if loading["missing_keys"]:  # transformers initialises them at random and continues
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(
            f"'{source}' lacks weights of a language model: {missing}; give a complete language model's checkpoint."
        )
    check_all_is_used(loading["unexpected_keys"], source)
    if not config.is_encoder_decoder and not is_tied(model):  # T5's own formula depends on the setting
        model.config.tie_word_embeddings = False  # some configs say otherwise, and whoever serves the model obeys
    return model


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head share their weights; True if the model has no head."""
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


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
    known = model.get_input_embeddings().num_embeddings
    size = vocabulary_size(tokenizer)
    if size > known:
        _grow_vocabulary(model, size)
        logger.info("enlarged the vocabulary of %s to %d for %s", source, size, tokenizer.pad_token)
    # If padding was EOS before, the embedding would still withhold gradients from EOS.
    model.get_input_embeddings().padding_idx = tokenizer.pad_token_id
    mark_new_ids(model, tokenizer, known)
    name_special_tokens(model, tokenizer)
    hide_ids_without_token(model, tokenizer)
    return LanguageModel(model.to(device), tokenizer)


def _grow_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Add embedding rows equal to the mean of the old rows: no randomness, and no new token starts out likely."""
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[old:] = layer.weight[:old].mean(dim=0)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights (safetensors), configs, tokenizer and its chat template."""
    name_special_tokens(model, tokenizer)  # trainers write their own choice into the configs
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def disable_dropout(model: nn.Module) -> None:
    """Turn dropout off permanently: with it, PPO's first ratio is not 1 and scores are not reproducible."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # some architectures keep the probability themselves
                setattr(module, name, 0.0)


def bare(model: Any) -> PreTrainedModel:
    """The model inside peft's wrapper, if there is one; its adapters stay active."""
    found: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return found
