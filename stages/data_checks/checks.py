"""Checks of each row's text that need no tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from data_schema import Comparison, Demonstration, Document, Record, prompt_messages
from stages.data_checks.findings import EXAMPLES, Finding

SAMPLE = 2000  # characters of a row from which its script is detected
SCRIPTS = {
    name: re.compile(f"[{letters}]")
    for name, letters in {
        "Latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
        "Han": "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ffff",
        "Kana": "\u3040-\u30ff",
        "Hangul": "\u1100-\u11ff\uac00-\ud7af",
        "Cyrillic": "\u0400-\u052f",
        "Greek": "\u0370-\u03ff",
        "Arabic": "\u0600-\u06ff\u0750-\u077f",
        "Hebrew": "\u0590-\u05ff",
        "Devanagari": "\u0900-\u097f",
        "Bengali": "\u0980-\u09ff",
        "Tamil": "\u0b80-\u0bff",
        "Thai": "\u0e00-\u0e7f",
    }.items()
}
ASCII_LETTER = re.compile("[A-Za-z]")
# Marks in a prompt that has already been put into a chat template.
TEMPLATE_MARK = re.compile(
    r"###\s*(?:Instruction|Response|Human|Assistant)\s*:|\[/?INST\]|<\|(?:im_start|user|assistant|start_header_id)\|>"
    r"|(?:\A|\n\n)(?:Human|Assistant|User): "
)
END_MARK = re.compile(r"<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>|</s>|<eos>|<end_of_turn>")
BROKEN = re.compile("[\ufffd\x00]")


def script_of(text: str) -> str:
    """The script of most letters at the text's start. Kana make it Japanese ("Kana"); "none" without letters."""
    start = text[:SAMPLE]
    if start.isascii():
        return "Latin" if ASCII_LETTER.search(start) else "none"
    counts = {name: len(pattern.findall(start)) for name, pattern in SCRIPTS.items()}
    if counts["Kana"] * 10 > counts["Han"] + counts["Kana"] > 0:
        counts["Kana"] += counts.pop("Han")
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else "other" if any(c.isalpha() for c in start) else "none"


class RowChecks:
    """Counts problems over all rows passed to `look_at`. Text that spells one of `special_tokens` is not counted as
    another model's mark."""

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        marks = sorted({re.escape(token) for token in special_tokens}, key=len, reverse=True)
        self._special = re.compile("|".join(marks)) if marks else None
        self._scripts: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._rows = 0
        self._longer_wins = self._pairs = 0

    def look_at(self, record: Record) -> None:
        self._rows += 1
        prompt = [] if isinstance(record, Document) else [message.content for message in prompt_messages(record)]
        answers = self._answers(record)
        whole = "\n".join([*prompt, *answers])
        self._scripts[script_of(whole)] += 1
        self._note("template_in_text", any(map(TEMPLATE_MARK.search, prompt)), record)
        ends = any(map(END_MARK.search, answers)) and not isinstance(record, Document)
        special = self._special is not None and self._special.search(whole) is not None
        self._note("end_mark_in_text", ends and not special, record)
        self._note("broken_characters", BROKEN.search(whole) is not None, record)
        if isinstance(record, Comparison):
            self._compare(record)

    def scripts(self) -> dict[str, int]:
        """Script -> number of rows, the most frequent first."""
        return dict(self._scripts.most_common())

    def findings(self) -> list[Finding]:
        texts = {
            "template_in_text": (
                "have a chat template's marks in the prompt, which the template would add again",
                "remove the marks, or read the file with a format that removes them",
            ),
            "end_mark_in_text": (
                "have another model's end mark in an answer, which would be trained as text",
                "remove it: the template adds the tokenizer's own EOS",
            ),
            "broken_characters": (
                "contain U+FFFD or NUL, which replace characters that could not be decoded",
                "get the text again from an intact source, or delete these rows",
            ),
        }
        found = []
        for check, count in self._counts.items():
            rare = check in ("template_in_text", "broken_characters") and count < 0.01 * self._rows
            what, cure = texts[check]
            text = f"{count} of {self._rows} rows {what}"
            examples = tuple(self._examples[check])
            found.append(Finding("note" if rare else "warning", check, text, cure, count, examples))
        return found + self._length_bias()

    @staticmethod
    def _answers(record: Record) -> list[str]:
        if isinstance(record, Document):
            return [record.text]
        if isinstance(record, Comparison):
            return list(record.responses)
        return [record.messages[-1].content] if isinstance(record, Demonstration) else []

    def _note(self, check: str, found: bool, record: Record) -> None:
        if found:
            self._counts[check] += 1
            self._examples.setdefault(check, []).append(record.id)
            del self._examples[check][EXAMPLES:]

    def _compare(self, record: Comparison) -> None:
        ranked = list(zip(record.ranks, map(len, record.responses), strict=True))
        for i, (rank, length) in enumerate(ranked):
            for other_rank, other_length in ranked[i + 1 :]:
                if rank != other_rank and length != other_length:
                    self._pairs += 1
                    self._longer_wins += (rank < other_rank) == (length > other_length)

    def _length_bias(self) -> list[Finding]:
        if self._pairs < 30 or self._longer_wins < 0.65 * self._pairs:
            return []
        text = f"the longer response wins {self._longer_wins / self._pairs:.0%} of {self._pairs} pairs"
        cure = "expect a reward model that prefers long answers; compare its accuracy with this figure"
        return [Finding("note", "length_bias", text, cure)]
