"""A model's special tokens: where its answers end, what pads, and which rows of its vocabulary have no token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from policy.errors import ModelError

# Settings of a model's forward pass that a generation config has too. A config of several parts (Gemma 3) declares its
# token ids only in the part for text.
ALSO_CONFIG = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict"),
}
CONFIGS = ("generation_config.json", "config.json")  # both may name stop tokens


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


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's EOS first, then those that the model's configs add to it."""
    more: tuple[int, ...] = getattr(tokenizer, "further_stop_ids", ())
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return own + tuple(i for i in more if i != tokenizer.eos_token_id)


def read_stop_ids(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Remember with the tokenizer the stop tokens that a model's configs name (`eos_token_id`, a number or a list).

    Chat models often have several, for example one for the end of a turn and one for the end of a text. Left out are
    ids without a token, and a single id that is an ordinary token: a default that belongs to another vocabulary."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found: dict[int, None] = {}
    for name in CONFIGS:
        path = cached_file(
            str(source),
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        try:
            stated: Any = json.loads(Path(path).read_text(encoding="utf-8"))["eos_token_id"] if path else None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a broken config.json is reported when the model is loaded
        ids = stated if isinstance(stated, list) else [stated] if stated in special else []
        found |= dict.fromkeys(i for i in ids if type(i) is int and tokenizer.convert_ids_to_tokens(i) is not None)
    tokenizer.further_stop_ids = tuple(found)


def mark_new_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int) -> None:
    """Remember with the model the ids that its training never used as they are used here: rows from `known` on, which
    were added at loading, and an EOS that its configs do not name as a stop token."""
    stated: tuple[int, ...] = getattr(tokenizer, "further_stop_ids", ())
    eos = () if not stated or tokenizer.eos_token_id in stated else (tokenizer.eos_token_id,)
    model.new_ids = (*eos, *range(known, model.get_input_embeddings().num_embeddings))


def name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the special tokens into the model's configs, which serving engines use to stop and pad, and nothing else
    that decides how answers are generated.

    Published checkpoints have sampling settings (beams, penalties, forced tokens, lengths) in either config. Sampling
    here is plain, and transformers refuses to save some of them."""
    config: Any = model.config
    stops = stop_ids(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = stops[0] if len(stops) == 1 else list(stops)
    declared = getattr(type(config), "__dataclass_fields__", {}).keys()
    for name in vars(GenerationConfig()).keys() & vars(config).keys() - declared - ALSO_CONFIG:
        delattr(config, name)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
        )


def stop_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The stop tokens as they are written in a text: EOS and those of the others that no ordinary text contains."""
    stops = stop_ids(tokenizer)
    if stops != (tokenizer.eos_token_id,):  # the lists of special tokens are made anew at every request
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
        stops = tuple(i for i in stops if i in special)
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in stops]


def cut_after_stop(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text up to its first stop token, that one included; EOS is added to a text without any."""
    found = [stop for stop in stop_texts(tokenizer) if stop in text] or [str(tokenizer.eos_token)]
    first = min(found, key=text.find)
    return text.partition(first)[0] + first


def without_last_stop(tokenizer: PreTrainedTokenizerBase, row: list[int]) -> list[int]:
    """An answer's ids without the stop token that ends it, if one does."""
    return row[:-1] if row and row[-1] in stop_ids(tokenizer) else row


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """1 + the highest id: larger than the number of tokens if the vocabulary has holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def ids_without_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids, in order, that the model has a row for and the tokenizer no token: spare rows and holes."""
    rows = model.get_input_embeddings().num_embeddings
    return tuple(sorted(set(range(rows)).difference(tokenizer.get_vocab().values())))


def hide_ids_without_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Remember such ids with the model: its distribution over tokens leaves them out, in sampling and in training."""
    model.hidden_ids = ids_without_token(model, tokenizer)


def hidden_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that the model's distribution over tokens leaves out."""
    ids: tuple[int, ...] = getattr(model, "hidden_ids", ())
    return ids


def mask_ids(logits: Tensor, ids: Tensor) -> Tensor:
    """(..., vocabulary) logits with -inf at `ids` (n,), so that these are never sampled and have probability 0."""
    return logits.index_fill(-1, ids, -torch.inf) if len(ids) else logits
