"""Pairs of a chosen and a rejected answer: HH-RLHF's transcripts, and preference rows as used by TRL and others."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from data_schema.formats.general.choices import margin_of, pair_of, used_by_prompt, why_undecided
from data_schema.formats.parts import Drop, Origin, Outcome, Row, rest, text_of
from data_schema.records import Comparison, Demonstration, Message, Prompt, normalise

# ---- Anthropic HH-RLHF: two transcripts

# The empty line is required: people also write "Human:" inside a turn.
HH_MARK = re.compile(r"\n\n(Human|Assistant):")


def hh_transcript(transcript: str) -> tuple[tuple[Message, ...], str] | Drop:
    """(the messages up to the last answer, the last answer), or the reason to drop the row."""
    start, *parts = HH_MARK.split(transcript)
    speakers, texts = parts[0::2], [text.strip() for text in parts[1::2]]
    expected = ["Human" if i % 2 == 0 else "Assistant" for i in range(len(speakers))]
    if start or speakers != expected or speakers[-1:] != ["Assistant"]:
        return Drop("turns do not alternate")
    if not all(texts[:-1]):
        return Drop("empty turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(speakers[:-1], texts[:-1], strict=True)
    return tuple(Message(roles[speaker], text) for speaker, text in turns), texts[-1]


def _hh_group(prompt: Sequence[Message]) -> str:
    """Dialogues with the same first question form a group: the data set has many continuations of each."""
    return hashlib.sha256(normalise(prompt[0].content).encode()).hexdigest()[:16]


def hh_comparison(row: Row, origin: Origin) -> Outcome:
    texts = text_of(row, "chosen"), text_of(row, "rejected")
    before = [text.rpartition("\n\nAssistant:")[0] for text in texts]
    if before[0] != before[1]:
        return Drop("prompts differ")
    chosen, rejected = hh_transcript(texts[0]), hh_transcript(texts[1])
    if isinstance(chosen, Drop):
        return chosen
    if isinstance(rejected, Drop):
        return rejected
    if not (chosen[1] and rejected[1]):
        return Drop("empty answer")
    return Comparison(
        *origin,
        prompt=chosen[0],
        responses=(chosen[1], rejected[1]),
        ranks=(1, 2),
        group=_hh_group(chosen[0]),
        meta=rest(row, "chosen", "rejected"),
    )


def hh_demonstration(row: Row, origin: Origin) -> Outcome:
    chosen = hh_transcript(text_of(row, "chosen"))
    if isinstance(chosen, Drop):
        return chosen
    prompt, answer = chosen
    if not answer:
        return Drop("empty answer")
    messages = (*prompt, Message("assistant", answer))
    return Demonstration(*origin, messages=messages, group=_hh_group(prompt), meta=rest(row, "chosen", "rejected"))


def hh_prompt(row: Row, origin: Origin) -> Outcome:
    chosen = hh_transcript(text_of(row, "chosen"))
    if isinstance(chosen, Drop):
        return chosen
    return Prompt(*origin, prompt=chosen[0], group=_hh_group(chosen[0]), meta=rest(row, "chosen", "rejected"))


# ---- preference: chosen and rejected as text or messages, with the prompt in its own column or inside both


_ALL_READ = {"prompt", "chosen", "rejected", "margin"}


def _preference_meta(row: Row) -> dict[str, Any]:
    if row.keys() <= _ALL_READ:
        return {}
    return rest(row, *used_by_prompt(row), "prompt", "chosen", "rejected", "margin")


def preference_comparison(row: Row, origin: Origin) -> Outcome:
    if reason := why_undecided(row):
        return Drop(reason)
    prompt, chosen, rejected = pair_of(row, "chosen", "rejected")
    return Comparison(
        *origin,
        prompt=prompt,
        responses=(chosen, rejected),
        ranks=(1, 2),
        margin=margin_of(row),
        meta=_preference_meta(row),
    )


def preference_demonstration(row: Row, origin: Origin) -> Outcome:
    if reason := why_undecided(row):
        return Drop(reason)
    prompt, chosen, _ = pair_of(row, "chosen", "rejected")
    return Demonstration(*origin, messages=(*prompt, Message("assistant", chosen)), meta=_preference_meta(row))


def preference_prompt(row: Row, origin: Origin) -> Outcome:
    return Prompt(*origin, prompt=pair_of(row, "chosen", "rejected")[0], meta=_preference_meta(row))
