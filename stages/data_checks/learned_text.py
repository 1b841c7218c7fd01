"""Compares a row's text with what a template makes of it and with what the tokens say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from data_schema import Comparison, Message, Record
from stages.data_checks.tokenizer_checks import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from policy.encoding import Encoded

REPEATED = 3  # times that a conversation is rendered, to find a template that depends on chance


def text_problems(
    record: Record, talk: Sequence[Message], pieces: Sequence[tuple[str, bool]], stops: Sequence[str]
) -> set[str]:
    """What the template changed in a conversation: "prompt altered", "answer altered", "answer lost".

    `pieces` is the conversation as `segments` renders it; its answers end with one of `stops`. White space around a
    message may change."""
    found = set()
    whole = "".join(text for text, _ in pieces)
    if not all(_asked_whole(message, whole) for message in talk if message.role != "assistant"):
        found.add("prompt altered")
    answers = [message.content.strip() for message in talk if message.role == "assistant"]
    rendered = [text for text, is_response in pieces if is_response]
    for answer, text in list(zip(answers, rendered, strict=True))[-1 if isinstance(record, Comparison) else 0 :]:
        if answer not in text:
            stop = next((stop for stop in stops if text.endswith(stop)), "")
            learned = text.removesuffix(stop).strip()
            kept = learned and (learned in answer or any(word in learned for word in answer.split()))
            found.add("answer altered" if kept else "answer lost")
    return found


def _asked_whole(message: Message, rendered: str) -> bool:
    """Whether the rendered text contains the message. A template may write labels between a user's words: Alpaca's
    separates an instruction from its input."""
    return message.content.strip() in rendered or (
        message.role == "user" and _in_order(message.content.split(), rendered)
    )


def _in_order(words: Iterable[str], text: str) -> bool:
    place = 0
    for word in words:
        place = text.find(word, place)
        if place < 0:
            return False
        place += len(word)
    return True


def tokens_differ(tokenizer: PreTrainedTokenizerBase, readings: Sequence[Reading]) -> Iterator[bool]:
    """For each conversation, whether the tokens of an answer spell another text than the rendered one, apart from
    white space. Answers with unknown tokens, which are counted elsewhere, are not compared."""
    answers = [list(_responses(reading.encoded)) for reading in readings]
    rows = [ids for group in answers for ids in group]
    decoded = iter(tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    for reading, group in zip(readings, answers, strict=True):
        texts = [text for text, is_response in reading.pieces if is_response]
        differs = False
        for text, ids, spelled in zip(texts, group, islice(decoded, len(group)), strict=True):
            known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
            differs |= known and spelled != text and "".join(spelled.split()) != "".join(text.split())
        yield differs


def _responses(row: Encoded) -> Iterator[list[int]]:
    """The ids of each unbroken stretch of tokens to learn."""
    stretch: list[int] = []
    for token, learned in zip(row.ids, row.is_response, strict=True):
        if learned:
            stretch.append(token)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def unsteady(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str | None:
    """What a conversation's rendered text depends on besides the conversation: "date", "chance" or None."""
    from policy.encoding import RenderError, render

    if len({render(tokenizer, messages, opening=False) for _ in range(REPEATED)}) > 1:
        return "chance"
    if "strftime_now" in str(tokenizer.chat_template):
        try:
            render(tokenizer, messages, opening=False, strftime_now="")  # hides the function that tells the date
        except RenderError:
            return "date"
    return None
