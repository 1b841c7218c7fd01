"""Messages to token ids: the one place for templates, and for padding.

A prompt and its response are tokenized apart and joined as ids. So the prompt a policy answers in PPO is, id for id,
the prompt it was tuned on and the one the reward model read; tokenized as one text, a boundary could merge differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema.records import Message
from data_schema.templates import TEMPLATES, template
from policy.errors import ModelError

BOS = "{{ bos_token }}"


class Encoded(NamedTuple):
    """A conversation as ids, and which of them a model should learn to write."""

    ids: list[int]
    is_response: list[bool]  # True on the assistant's tokens, EOS included


def set_template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Give the tokenizer the named template ("tokenizer": keep its own); returns the manifest's "name/version".

    A user's own, from a file, is tried first. Raises ModelError, or DataError, where there is none that will do.
    """
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ModelError(
                "template is 'tokenizer', but this tokenizer has none of its own; name one, such as 'chatml'."
            )
        return "tokenizer"
    chosen = template(name)
    # Our templates write no BOS and `_tokenize` adds none: for a tokenizer that puts one first the template does, so
    # that whoever serves the checkpoint does the same.
    wants_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    writes_bos = "bos_token" in chosen.chat_template  # a user's own may
    tokenizer.chat_template = (BOS if wants_bos and not writes_bos else "") + chosen.chat_template
    if chosen not in TEMPLATES.values():
        _try_template(tokenizer, name)
    return f"{chosen.name}/{chosen.version}"


def _try_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError unless the template keeps prompts as prefixes and gives back the answers of a small talk."""
    turns = ["Where?", "Here.", "When?", "Now."]
    talk = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)]
    try:
        pieces = segments(tokenizer, talk)
    except TemplateError as error:
        raise ModelError(f"template '{name}' is no Jinja chat template that works: {error}; mend the file.") from error
    except ModelError as error:
        raise ModelError(
            f"template '{name}' changes a prompt's text once the answer is known: let it write what opens an assistant "
            "turn under add_generation_prompt too, and end the turn with eos_token."
        ) from error
    found = [text.removesuffix(str(tokenizer.eos_token)).strip() for text, is_response in pieces if is_response]
    asked = [text for text, is_response in pieces if not is_response]
    if found != turns[1::2] or not all(turn in text for turn, text in zip(turns[::2], asked, strict=True)):
        raise ModelError(
            f"template '{name}' makes {found} of the answers {turns[1::2]}; let it write every message's content, and "
            "under add_generation_prompt all that stands before an answer."
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], opening: bool) -> str:
    """The conversation as text; `opening` adds what comes before an answer."""
    rows = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=opening))


def segments(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The conversation's text in pieces (text, is response); every response piece ends with EOS.

    A conversation that ends with the user gets what comes before the answer. Raises ModelError if the template is not
    prefix-preserving: an answer's text must follow the text it answers.
    """
    pieces: list[tuple[str, bool]] = []
    done = ""
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = render(tokenizer, messages[:turn], opening=True)
        _check_prefix(done, prompt)
        answer = answer_text(tokenizer, prompt, messages[: turn + 1])
        pieces += [(prompt[len(done) :], False), (answer, True)]
        done = prompt + answer
    if messages[-1].role != "assistant":
        prompt = render(tokenizer, messages, opening=True)
        _check_prefix(done, prompt)
        pieces.append((prompt[len(done) :], False))
    return pieces


def answer_text(tokenizer: PreTrainedTokenizerBase, prompt: str, messages: Sequence[Message]) -> str:
    """The text of the last message, EOS included, in a conversation whose rendered prompt is `prompt`."""
    whole = render(tokenizer, messages, opening=False)
    _check_prefix(prompt, whole)
    eos = str(tokenizer.eos_token)
    # The first EOS ends an answer, as it would end a sampled one. What follows, written by the template or because the
    # content itself holds EOS, belongs to the next turn.
    return whole[len(prompt) :].partition(eos)[0] + eos


def _check_prefix(start: str, whole: str) -> None:
    if not whole.startswith(start):
        raise ModelError(
            "the tokenizer's chat template changes a prompt's text once the answer is known, so prompt and answer "
            "cannot be told apart; use one of triptych's templates, such as 'chatml'."
        )


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Conversations as ids with their response mask; one that ends with the user stops where the answer begins."""
    pieces = [segments(tokenizer, messages) for messages in conversations]
    ids = iter(_tokenize(tokenizer, [text for conversation in pieces for text, _ in conversation]))
    encoded = []
    for conversation in pieces:
        tokens: list[int] = []
        mask: list[bool] = []
        for _, is_response in conversation:
            piece = next(ids)
            tokens += piece
            mask += [is_response] * len(piece)
        encoded.append(Encoded(tokens, mask))
    return encoded


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Prompts as ids, up to where the answer begins."""
    return [row.ids for row in encode(tokenizer, prompts)]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """One prompt and several answers to it -> ids of the prompt, and of each answer with its EOS."""
    pieces = [text for text, _ in segments(tokenizer, prompt)]
    whole = "".join(pieces)
    texts = [answer_text(tokenizer, whole, [*prompt, Message("assistant", answer)]) for answer in answers]
    ids = _tokenize(tokenizer, pieces + texts)
    return [token for piece in ids[: len(pieces)] for token in piece], ids[len(pieces) :]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # The template writes every special token there should be: a BOS added here would be a second one.
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def decode_responses(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, lengths: Tensor) -> list[str]:
    """(batch, response) ids -> texts without special tokens, cut at each response's length and stripped."""
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


class Padded(NamedTuple):
    ids: Tensor  # (batch, time)
    mask: Tensor  # (batch, time) True on real tokens


def pad(sequences: Sequence[Sequence[int]], pad_id: int, side: str) -> Padded:
    """Sequences of ids as one rectangle; `side` ("left" or "right") is where the filler goes."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = True
    return Padded(ids, mask)
