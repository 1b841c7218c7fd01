"""Finds the models that `evaluate-tasks` compares, encodes prompts for them, and loads their weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from checkpoint_store import CheckpointStore, StoreError
from policy.answer_likelihood import Question
from policy.encoding import encode_answers, set_template
from policy.errors import ModelError
from policy.language_model import load_config, load_tokenizer, load_weights
from policy.seq2seq import encode_answers_apart, set_seq2seq_template
from stages.errors import ConfigError
from workbench.tasks.data import Example

POLICY_STAGES = ("sft", "select", "ppo")


class Reader(NamedTuple):
    """A model whose weights are not loaded yet."""

    name: str
    source: str  # directory or hub name
    key: str | None  # key in the store
    tokenizer: PreTrainedTokenizerBase
    template: str
    encoder_decoder: bool
    most_tokens: float  # the model's number of positions

    def encode(self, example: Example) -> Question:
        """Encode the example's prompt and its choices, if any, as token ids."""
        read = encode_answers_apart if self.encoder_decoder else encode_answers
        return Question(*read(self.tokenizer, example.prompt, example.choices))

    def load(self, device: torch.device) -> PreTrainedModel:
        """Load the weights. Padding is known from lengths, so a base model needs no padding token of its own."""
        auto_class = AutoModelForSeq2SeqLM if self.encoder_decoder else AutoModelForCausalLM
        return load_weights(auto_class, self.source).to(device).eval()


def open_reader(name: str, model: str, store: CheckpointStore, template: str | None) -> Reader:
    """Open a directory, a name in the store, or a hub name; they are looked up in this order.

    `template` None: the tokenizer's own, or "plain" if it has none. Raises ModelError or ConfigError."""
    source, key = find_model(model, store)
    tokenizer = load_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of '{source}' has no EOS token, so no answer could end; set eos_token in it.")
    config = load_config(source)
    encoder_decoder = bool(config.is_encoder_decoder)
    chosen = template or ("tokenizer" if tokenizer.chat_template else "plain")
    version = (set_seq2seq_template if encoder_decoder else set_template)(tokenizer, chosen)
    shown = "its own" if version == "tokenizer" else version
    most_tokens = getattr(config, "max_position_embeddings", None) or math.inf
    return Reader(name, source, key, tokenizer, shown, encoder_decoder, most_tokens)


def find_model(model: str, store: CheckpointStore) -> tuple[str, str | None]:
    """Return (directory or hub name, key if in the store). Raises ConfigError if the model is not found."""
    try:
        folder, manifest = store.open(model)
    except StoreError as error:
        try:
            load_tokenizer(model)
        except ModelError:
            raise ConfigError(f"--models: '{model}' is not a directory and was not found on the hub; {error}") from None
        return model, None
    if manifest is not None and manifest.stage not in POLICY_STAGES:
        raise ConfigError(
            f"--models: '{model}' is a checkpoint of {manifest.stage}, not a policy; give one of sft, select or ppo"
        )
    return str(folder), manifest.key if manifest else None
