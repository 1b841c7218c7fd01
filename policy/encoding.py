"""Turns messages into token ids; the only place where templates are applied and ids are padded.

A prompt and its response are tokenized separately and joined as ids. So the policy in PPO, SFT and the reward model all
see the same prompt, id for id. Tokenized as one text, tokens could merge differently across the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_schema.errors import DataError
from data_schema.records import Message
from data_schema.templates import TEMPLATES, template, time_limit
from policy.errors import ModelError
from policy.special_tokens import cut_after_stop, without_last_stop

BOS = "{{ bos_token }}"
OWN = tuple(own.chat_template for own in TEMPLATES.values())  # these end on every conversation
BLANKS = ("\u2581", "\u0120")  # how SentencePiece and byte-level BPE write a blank in a token


class RenderError(ModelError):
    """The chat template refuses a conversation, or fails on it."""


class Encoded(NamedTuple):
    """A conversation as ids, with a mask of those that the model should learn to generate."""

    ids: list[int]
    is_response: list[bool]  # True on the assistant's tokens, EOS included


def set_template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Give the tokenizer the named template ("tokenizer": keep its own); returns "name/version" for the manifest.

    A user's own template, from a file, is tested first. Raises ModelError or DataError if it is missing or unusable."""
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ModelError(
                "template is 'tokenizer', but this tokenizer has no template of its own; name one, such as 'chatml'."
            )
        return "tokenizer"
    chosen = template(name)
    # Our templates write no BOS and `_tokenize` adds none. For a tokenizer that begins texts with BOS the template gets
    # it, so that any engine that serves the checkpoint does the same.
    wants_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    writes_bos = "bos_token" in chosen.chat_template  # a user's template may
    tokenizer.chat_template = (BOS if wants_bos and not writes_bos else "") + chosen.chat_template
    if chosen not in TEMPLATES.values():
        _try_template(tokenizer, name)
    return f"{chosen.name}/{chosen.version}"


def _try_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError unless the template keeps prompts as prefixes and the answers of a test conversation intact."""
    turns = ["Where?", "Here.", "When?", "Now."]
    talk = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)]
    try:
        pieces = segments(tokenizer, talk)
    except RenderError as error:
        raise ModelError(
            f"template '{name}' is not a working Jinja chat template: {error.__cause__}; fix the file."
        ) from error
    except ModelError as error:
        raise ModelError(
            f"template '{name}' changes a prompt's text when the answer is added: under add_generation_prompt it must "
            "also write the text that opens an assistant turn, and it must end the turn with eos_token."
        ) from error
    found = [text.removesuffix(str(tokenizer.eos_token)).strip() for text, is_response in pieces if is_response]
    asked = [text for text, is_response in pieces if not is_response]
    if found != turns[1::2] or not all(turn in text for turn, text in zip(turns[::2], asked, strict=True)):
        raise ModelError(
            f"template '{name}' alters a test conversation: the answers '{' '.join(turns[1::2])}' became "
            f"'{' '.join(found)}'; write all content, and under add_generation_prompt all text before an answer."
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], opening: bool, **variables: Any) -> str:
    """Render the conversation as text; `opening` adds the text that opens an answer, `variables` are further names that
    the template can read. Raises RenderError if the template raises anything."""
    rows = [{"role": message.role, "content": message.content} for message in messages]
    limit: AbstractContextManager[None] = nullcontext()
    if tokenizer.chat_template not in OWN:
        start = " ".join(messages[0].content[:200].split())[:40] if messages else ""
        limit = time_limit(f"the chat template, for the conversation that begins with '{start}',")
    try:
        with limit:
            return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=opening, **variables))
    except DataError:
        raise
    except Exception as error:  # a template is a program, which can raise any error
        reason = " ".join(str(error).split()) or "no reason is given"
        raise RenderError(
            f"the chat template cannot render a conversation ({reason}); change the row, or use another template"
        ) from error


def segments(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Split the conversation's text into pieces (text, is response); every response piece ends with EOS.

    If the conversation ends with the user, the text that opens an answer is added. Raises ModelError if the template
    does not preserve prefixes: the text up to an answer must be the same with and without the answer."""
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
    """The text of the last message, with its stop token, in a conversation whose rendered prompt is `prompt`."""
    whole = render(tokenizer, messages, opening=False)
    _check_prefix(prompt, whole)
    # The first stop token ends an answer, as it would end a sampled one. Any text after it, from the template or
    # because the content itself contains one, belongs to the next turn.
    return cut_after_stop(tokenizer, whole[len(prompt) :])


def _check_prefix(start: str, whole: str) -> None:
    if not whole.startswith(start):
        raise ModelError(
            "the tokenizer's chat template changes a prompt's text when the answer is added, so prompt and answer "
            "cannot be separated; use one of triptych's templates, such as 'chatml'."
        )


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Encode conversations as ids with a response mask; one that ends with the user stops where the answer begins.

    Raises ModelError, with the beginning of the conversation, for the first one that cannot be encoded."""
    pieces = []
    for messages in conversations:
        try:
            pieces.append(segments(tokenizer, messages))
        except ModelError as error:
            raise ModelError(f'the conversation that begins "{_beginning(messages)}": {error}') from error
    encoded = encode_segments(tokenizer, pieces)
    return [Encoded(row.ids, learned_tokens(row, talk)) for row, talk in zip(encoded, conversations, strict=True)]


def learned_tokens(row: Encoded, messages: Sequence[Message]) -> list[bool]:
    """The mask of an encoded conversation without the answers that are marked as not to be learned."""
    answers = [message.learned for message in messages if message.role == "assistant"]
    if all(answers):
        return row.is_response
    # A template writes text between two answers, so each answer is one stretch of the mask.
    starts = [i for i, here in enumerate(row.is_response) if here and not (i and row.is_response[i - 1])]
    number = {start: n for n, start in enumerate(starts)}
    mask, kept = [], True
    for i, here in enumerate(row.is_response):
        kept = answers[number[i]] if i in number else kept
        mask.append(here and kept)
    return mask


def encode_segments(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[tuple[str, bool]]]
) -> list[Encoded]:
    """Encode conversations that `segments` has rendered."""
    texts = [text for pieces in conversations for text, _ in pieces]
    before = [pieces[i - 1][0] if i else "" for pieces in conversations for i in range(len(pieces))]
    ids = iter(_tokenize(tokenizer, texts, before))
    encoded = []
    for pieces in conversations:
        tokens: list[int] = []
        mask: list[bool] = []
        for _, is_response in pieces:
            piece = next(ids)
            tokens += piece
            mask += [is_response] * len(piece)
        encoded.append(Encoded(tokens, mask))
    return encoded


def _beginning(messages: Sequence[Message]) -> str:
    text = " ".join(messages[0].content.split())
    return text if len(text) <= 60 else text[:57] + "..."


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Encode prompts as ids, up to where the answer begins."""
    return [row.ids for row in encode(tokenizer, prompts)]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Encode one prompt and several answers to it -> ids of the prompt, and of each answer with its EOS."""
    pieces = [text for text, _ in segments(tokenizer, prompt)]
    whole = "".join(pieces)
    texts = [answer_text(tokenizer, whole, [*prompt, Message("assistant", answer)]) for answer in answers]
    before = ["", *pieces[:-1]] + [pieces[-1]] * len(texts)
    ids = _tokenize(tokenizer, pieces + texts, before)
    return [token for piece in ids[: len(pieces)] for token in piece], ids[len(pieces) :]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], before: list[str]) -> list[list[int]]:
    """The ids of each text; `before` is the text in front of it, "" at the start of a conversation.

    SentencePiece puts a blank in front of every text it is given. Within a conversation there is none: a model that
    learned it would write a blank that the template does not have."""
    if not texts:
        return []
    # The template writes all special tokens; a BOS added here would be a second one.
    if not adds_blank(tokenizer):
        return _ids(tokenizer, texts)
    added = tuple(tokenizer.get_added_vocab())  # after one of these, a blank may belong there
    starts = [next((token for token in added if text.endswith(token)), "\n") if text else "" for text in before]
    distinct = list(dict.fromkeys(starts))
    start_ids = dict(zip(distinct, _ids(tokenizer, distinct), strict=True))
    whole = _ids(tokenizer, [start + text for start, text in zip(starts, texts, strict=True)])
    rows = []
    for start, text, row in zip(starts, texts, whole, strict=True):
        first = start_ids[start]
        joined = row[: len(first)] != first  # a token has taken characters of both
        rows.append(_ids(tokenizer, [text])[0] if joined else row[len(first) :])
    return rows


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    try:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exceptions, for example for an unknown word
        reason = " ".join(str(error).split()) or "no reason is given"
        raise ModelError(f"the tokenizer cannot read a text ({reason}); change the row, or the tokenizer") from error
    return ids


@lru_cache(maxsize=8)
def adds_blank(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a blank in front of a text."""
    try:
        tokens = tokenizer.convert_ids_to_tokens(_ids(tokenizer, ["x"])[0])
    except ModelError:  # a list of words without "x"
        return False
    return "".join(tokens).startswith(BLANKS)


def decode_responses(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, lengths: Tensor) -> list[str]:
    """Decode (batch, response) ids -> texts without special and stop tokens, cut at each length and stripped."""
    rows = [
        without_last_stop(tokenizer, row[:length].tolist())
        for row, length in zip(tokens, lengths.tolist(), strict=True)
    ]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


class Padded(NamedTuple):
    ids: Tensor  # (batch, time)
    mask: Tensor  # (batch, time) True on real tokens


def pad(sequences: Sequence[Sequence[int]], pad_id: int, side: str) -> Padded:
    """Pad sequences of ids to the longest one; `side` ("left" or "right") is where the padding goes."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = True
    return Padded(ids, mask)
