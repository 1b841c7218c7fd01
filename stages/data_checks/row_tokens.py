"""Encodes every row as the stages do: its length in tokens, and what template and tokenizer make of its text."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema import Document, Message, Prompt, Record
from policy.errors import ModelError
from stages.data_checks.findings import EXAMPLES, Finding, Severity, one_line
from stages.data_checks.learned_text import text_problems, tokens_differ, unsteady
from stages.data_checks.lengths import Lengths, conversations, learned
from stages.data_checks.tokenizer_checks import Reading, read_conversations, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 500
RENDERED_AGAIN = 32  # first rows, to find a template whose text depends on chance or on the date
REASONS = 20  # distinct reasons of refusal; further ones are counted together
Read = tuple[Reading | str, bool]  # or why it cannot be read; whether the tokens say something else than the text
OWN_TEMPLATE = "use a template that writes the whole text, such as one of triptych's"
FINDINGS: dict[str, tuple[Severity, str, str, str]] = {
    "no mask": ("error", "empty_mask", "have no token with a loss, so nothing is learned", "delete these rows"),
    "no eos": (
        "error",
        "eos_not_trained",
        "have an answer that does not end with EOS",
        "make eos_token a special token, so that it is never split",
    ),
    "only eos": ("warning", "empty_target", "have an answer that is only EOS", "give it text, or delete the row"),
    "answer lost": ("error", "answer_lost", "have an answer whose text the template leaves out", OWN_TEMPLATE),
    "answer altered": (
        "warning",
        "answer_altered",
        "have an answer of which a part is left out or rewritten, by the template or at an EOS in the text",
        f"remove what is not to be learned from the rows, or {OWN_TEMPLATE}",
    ),
    "prompt altered": (
        "warning",
        "prompt_altered",
        "have a system or user message that the template leaves out or rewrites",
        f"remove that message from the rows, or {OWN_TEMPLATE}",
    ),
    "tokens differ": (
        "warning",
        "tokens_altered",
        "have an answer whose text the tokenizer changes, such as its case or accents",
        "use a tokenizer that keeps text as it is, or accept that answers are written like that",
    ),
    "special token": (
        "warning",
        "special_token_in_text",
        "have one of the tokenizer's special tokens in their text, which is read as that token",
        "remove it from the text; an answer ends at its first EOS",
    ),
}

STEADINESS = {
    "date": Finding(
        "warning",
        "template_date",
        "the template writes today's date: on another day the same row has other tokens, and a run cannot be repeated",
        "use a template without a date, such as one of triptych's, or a copy of this one with a fixed date",
    ),
    "chance": Finding(
        "error",
        "template_chance",
        "the template gives another text each time it renders the same row",
        "remove what depends on chance from the template, or use one of triptych's, such as 'chatml'",
    ),
}


class Stops(NamedTuple):
    """The tokens that end an answer."""

    ids: Sequence[int]
    texts: Sequence[str]


def token_lengths(
    records: Iterable[Any], kind: type, tokenizer: PreTrainedTokenizerBase
) -> tuple[Lengths, list[Finding]]:
    """-> (lengths in tokens as the stages encode them, findings from encoding every row).

    A row that cannot be encoded has no length; there is an error among the findings for it."""
    from policy.special_tokens import stop_ids, stop_texts

    stops = Stops(stop_ids(tokenizer), stop_texts(tokenizer))
    lengths = Lengths("tokens", array("q"), array("q"))
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    names = sorted(map(re.escape, tokenizer.all_special_tokens), key=len, reverse=True)
    special = re.compile("|".join(names) or "(?!)")
    depends_on: set[str] = set()
    unknown = seen = n_rows = 0
    rest = iter(records)
    while batch := list(islice(rest, BATCH)):
        talks = [conversations(record) for record in batch]
        readings = iter(_read(tokenizer, [talk for group in talks for talk in group]))
        documents = iter(_document_ids(tokenizer, batch) if kind is Document else ())
        for record, group in zip(batch, talks, strict=True):
            read = list(islice(readings, len(group)))
            problems: set[str] = set()
            if kind is Document:
                ids = [next(documents)]
                lengths.whole.append(len(ids[0]) + 1)  # packing adds an EOS
            else:
                ids = [reading.encoded.ids for reading, _ in read if not isinstance(reading, str)]
                problems = _problems(record, group, read, stops, lengths)
            seen, unknown = seen + sum(map(len, ids)), unknown + sum(row.count(tokenizer.unk_token_id) for row in ids)
            if any(map(special.search, _texts(record, group))):
                problems.add("special token")
            for problem in sorted(problems):
                known = problem in FINDINGS or problem in counts or len(counts) < REASONS
                name = problem if known else "other reasons"
                counts[name] += 1
                examples.setdefault(name, []).append(record.id)
                del examples[name][EXAMPLES:]
            if n_rows < RENDERED_AGAIN and len(ids) == len(group):
                depends_on |= {found for talk in group if (found := unsteady(tokenizer, talk))}
            n_rows += 1
    unsteadiness = [STEADINESS[what] for what in sorted(depends_on)]
    return lengths, unsteadiness + _encoding_findings(counts, examples, unknown / max(seen, 1), n_rows)


def _read(tokenizer: PreTrainedTokenizerBase, talks: Sequence[Sequence[Message]]) -> list[Read]:
    readings = read_conversations(tokenizer, talks)
    differs = iter(tokens_differ(tokenizer, [reading for reading in readings if not isinstance(reading, str)]))
    return [(reading, not isinstance(reading, str) and next(differs)) for reading in readings]


def _problems(
    record: Record, talks: Sequence[Sequence[Message]], readings: Sequence[Read], stops: Stops, lengths: Lengths
) -> set[str]:
    """Everything that is wrong with a row; its lengths are appended if it can be encoded."""
    refused = [reading for reading, _ in readings if isinstance(reading, str)]
    if refused:
        return {refused[0]}
    found: set[str] = set()
    longest = 0
    for talk, (reading, differs) in zip(talks, readings, strict=True):
        assert not isinstance(reading, str)
        ids = reading.encoded.ids
        longest = max(longest, len(ids))
        found |= text_problems(record, talk, reading.pieces, stops.texts)
        found |= {"tokens differ"} if differs else set()
        if isinstance(record, Prompt):
            continue
        n = sum(learned(reading.encoded, type(record), talk))
        lengths.answers.append(n)
        if n == 0:
            found.add("no mask")
        elif ids[-1] not in stops.ids:
            found.add("no eos")
        elif n == 1:
            found.add("only eos")
    lengths.whole.append(longest)
    return found


def _texts(record: Record, talks: Sequence[Sequence[Message]]) -> list[str]:
    """All texts of a row, each once."""
    if isinstance(record, Document):
        return [record.text]
    answers = [talk[-1].content for talk in talks[1:]]
    return [*(message.content for message in talks[0]), *answers]


def _document_ids(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[list[int]]:
    texts = [document.text for document in documents]
    try:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exceptions, for example for an unknown word
        raise ModelError(
            f"the tokenizer cannot read a text in the rows {documents[0].id} to {documents[-1].id} "
            f"({one_line(error)}); change the text, or the tokenizer"
        ) from error
    return ids


def _encoding_findings(
    counts: Mapping[str, int], examples: Mapping[str, list[str]], unknown: float, n: int
) -> list[Finding]:
    found = []
    for what, count in counts.items():
        rows, shown = f"{count} of {n} rows", tuple(examples[what])
        if what in FINDINGS:
            severity, check, text, cure = FINDINGS[what]
            found.append(Finding(severity, check, f"{rows} {text}", cure, count, shown))
        else:
            found.append(refusal("error", rows, what, count, shown))
    if unknown >= 0.001:
        text = f"{unknown:.1%} of the tokens are not in the vocabulary"
        found.append(Finding("warning", "unknown_tokens", text, "use a tokenizer that was made for such text"))
    return found
