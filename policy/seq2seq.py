"""Encoder-decoder models (T5, FLAN-T5, BART): the prompt goes to the encoder, the answer with EOS to the decoder.

Templates and records are the same as for decoder-only models. The only difference: the tokenizer itself adds special
tokens to the inputs of encoder and decoder, as in these models' pretraining, so the template writes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from data_schema.records import Message
from policy.encoding import BOS, pad, render, set_template
from policy.errors import ModelError
from policy.language_model import LanguageModel, fit_special_tokens, load_tokenizer, load_weights
from policy.maths.logprobs import token_logprobs

NO_LABEL = -100  # fills labels after the end; these models' own label shifting recognises it


class Pair(NamedTuple):
    """Ids of a prompt for the encoder and of an answer for the decoder; both end with EOS."""

    prompt: list[int]
    answer: list[int]


class PairBatch(NamedTuple):
    prompts: Tensor  # (batch, prompt) ids
    prompt_mask: Tensor  # (batch, prompt) True on real tokens
    decoder_inputs: Tensor  # (batch, answer) the start token, then the answer without its last token
    answers: Tensor  # (batch, answer) ids; NO_LABEL after the end

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Keyword arguments for the model's forward pass."""
        tensors = {
            "input_ids": self.prompts,
            "attention_mask": self.prompt_mask.long(),
            "decoder_input_ids": self.decoder_inputs,
        }
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def load_seq2seq_model(source: str | Path, device: torch.device, pad_token: str | None = None) -> LanguageModel:
    """Load an encoder-decoder in float32 and its tokenizer; arguments and errors as in `load_language_model`."""
    tokenizer = load_tokenizer(source)
    tokenizer.padding_side = "right"  # the encoder's positions may be absolute
    model = load_weights(AutoModelForSeq2SeqLM, source)
    if model.config.decoder_start_token_id is None:
        raise ModelError(
            f"'{source}' has no decoder_start_token_id in its config.json; set it (T5: the padding token's id)."
        )
    return fit_special_tokens(model, tokenizer, source, device, pad_token)


def set_seq2seq_template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """As `set_template`, but without a BOS: here `tokenizer(text)` adds the special tokens to the rendered text."""
    version = set_template(tokenizer, name)
    tokenizer.chat_template = tokenizer.chat_template.removeprefix(BOS)
    return version


def encode_pairs(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Pair]:
    """Split each conversation into its last answer and the prompt before it; each must end with the assistant."""
    prompts = [render(tokenizer, messages[:-1], opening=True) for messages in conversations]
    answers = _answer_ids(tokenizer, [messages[-1].content for messages in conversations])
    return [Pair(*pair) for pair in zip(_with_specials(tokenizer, prompts), answers, strict=True)]


def encode_answers_apart(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Encode one prompt and several answers to it -> ids for the encoder, and ids of each answer with its EOS."""
    text = render(tokenizer, prompt, opening=True)
    return _with_specials(tokenizer, [text])[0], _answer_ids(tokenizer, answers)


def _answer_ids(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> list[list[int]]:
    # The first EOS ends an answer, as it would end a generated one, even if it occurs in the text itself.
    return _with_specials(tokenizer, [answer.partition(str(tokenizer.eos_token))[0] for answer in answers])


def _with_specials(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize the texts with the tokenizer's own special tokens; add EOS at the end if the tokenizer does not."""
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []
    return [row if row[-1:] == [tokenizer.eos_token_id] else [*row, tokenizer.eos_token_id] for row in rows]


def collate_pairs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> PairBatch:
    """Pad rows of ids into one batch on the CPU; the model defines how the decoder's inputs begin."""
    read = pad(prompts, model.config.pad_token_id, "right")
    labels = pad(answers, NO_LABEL, "right").ids
    shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return PairBatch(read.ids, read.mask, shifted, labels)


def answer_token_logprobs(logits: Tensor, answers: Tensor) -> Tensor:
    """(batch, answer, vocabulary) logits and (batch, answer) ids -> (batch, answer) log-probabilities, filler 0."""
    real = answers != NO_LABEL
    return torch.where(real, token_logprobs(logits, answers.masked_fill(~real, 0)), 0.0)
