"""Reports what a data set contains and what is wrong with it, before you train on it.

All counts are over all rows, in a few passes that keep numbers in memory but no texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema import Comparison, Demonstration, Document, Record, Records, prompt_messages
from data_schema import prompt_text as folded_prompt
from data_schema.duplicates import THRESHOLD, Twin, near_duplicates, near_matches, repeated_rows, text_digest
from data_schema.formats.meaning import meanings
from data_schema.records import KIND_NAMES
from stages.data_checks.checks import RowChecks
from stages.data_checks.findings import EXAMPLES, Finding, Severity, one_line, worst_first
from stages.data_checks.lengths import Lengths, add_words, histogram, length_findings, quantiles
from stages.data_checks.one_answer import one_answer_findings
from stages.data_checks.row_tokens import token_lengths
from stages.data_checks.tokenizer_checks import tokenizer_findings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOOKED_AT = 200  # rows, for an example of a column's content


class Tokens(NamedTuple):
    """A tokenizer with its template set, to check the rows with."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str  # "name/version", or "tokenizer" for the tokenizer's own


@dataclass(frozen=True)
class Report:
    kind: str
    source_format: str
    sources: tuple[str, ...]
    records: int
    dropped: Mapping[str, int]
    unread: Mapping[str, int]  # column that the format does not read -> rows with content in it
    duplicates: int  # rows identical to an earlier one
    near_duplicates: int  # further rows that are nearly identical to an earlier one
    same_prompt: int  # rows with the same prompt as an earlier one
    lengths: Lengths
    max_length: int | None
    scripts: Mapping[str, int]
    against: Mapping[str, Any] | None
    tokenizer: str | None
    template: str | None
    findings: tuple[Finding, ...]  # worst first

    @property
    def too_long(self) -> int | None:
        return None if self.max_length is None else sum(length > self.max_length for length in self.lengths.whole)

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "source_format": self.source_format,
            "sources": list(self.sources),
            "records": self.records,
            "dropped": dict(self.dropped),
            "unread": dict(self.unread),
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "same_prompt": self.same_prompt,
            "lengths": {
                "unit": self.lengths.unit,
                "rows": quantiles(self.lengths.whole),
                "answers": quantiles(self.lengths.answers),
                "histogram": [list(bar) for bar in histogram(self.lengths.whole)],
            },
            "max_length": self.max_length,
            "too_long": self.too_long,
            "scripts": dict(self.scripts),
            "against": self.against,
            "tokenizer": self.tokenizer,
            "template": self.template,
            "findings": [finding.as_json() for finding in self.findings],
        }


def examine(
    records: Records[Any],
    sources: Sequence[str],
    tokens: Tokens | None = None,
    max_length: int | None = None,
    against: Records[Any] | None = None,
    stops: str | None = None,
    passed_over: str | None = None,
) -> Report:
    """Examine `records` and return the report. `max_length` is in tokens, or in words without a tokenizer. `against`
    are other records, such as an evaluation set, which should have no prompt in common with `records`. `stops` is the
    error at which a run would stop, `passed_over` why the rows are not of a more specific kind."""
    checks = RowChecks(tokens.tokenizer.all_special_tokens if tokens else ())
    contents, prompts = array("Q"), array("Q")
    lengths = Lengths("words", array("q"), array("q"))
    for record in records:
        checks.look_at(record)
        contents.append(text_digest(whole_text(record)))
        prompts.append(text_digest(folded_prompt(record)))
        if tokens is None:
            add_words(record, lengths)
    repeats, same_prompt = ([row for row, _ in repeated_rows(digests)] for digests in (contents, prompts))
    near = {twin.row for twin in near_duplicates(Texts(records, whole_text))}.difference(repeats)

    found = _dropped_findings(records, stops) + unread_findings(records)
    if passed_over is not None:
        text = f"the rows are read as {KIND_NAMES[records.kind]}, since nothing better could be read: {passed_over}"
        found.append(Finding("warning", "kind", one_line(text, 400), "name the kind with --kind, or fix the rows"))
    found += _duplicate_findings(records, repeats, sorted(near), same_prompt) + checks.findings()
    found += one_answer_findings(records)
    if tokens is not None:
        found += tokenizer_findings(tokens.tokenizer, tokens.template == "tokenizer")
        lengths, refused = token_lengths(records, records.kind, tokens.tokenizer)
        found += refused
    found += length_findings(records, lengths, max_length)
    account = None
    if against is not None:
        account, leaks = _leaks(records, against)
        found += leaks
    return Report(
        kind=KIND_NAMES[records.kind],
        source_format=records.format,
        sources=tuple(sources),
        records=len(records),
        dropped=dict(sorted(records.dropped.items())),
        unread=dict(sorted(records.unread.items())),
        duplicates=len(repeats),
        near_duplicates=len(near),
        same_prompt=len(same_prompt),
        lengths=lengths,
        max_length=max_length,
        scripts=checks.scripts(),
        against=account,
        tokenizer=tokens.name if tokens else None,
        template=tokens.template if tokens else None,
        findings=tuple(worst_first(found)),
    )


class Texts(Sequence[str]):
    """A text of each record, computed on access."""

    def __init__(self, records: Records[Any], text_of: Callable[[Any], str]) -> None:
        self._records, self._text_of = records, text_of

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, at: Any) -> Any:
        return self._text_of(self._records[at])

    def __iter__(self) -> Iterator[str]:
        return map(self._text_of, self._records)


def whole_text(record: Record) -> str:
    """The whole text of a record, with ranks, without id and metadata."""
    if isinstance(record, Document):
        return record.text
    answers = record.responses if isinstance(record, Comparison) else ()
    ranks = str(record.ranks) if isinstance(record, Comparison) else ""
    turns = record.messages if isinstance(record, Demonstration) else record.prompt
    return "\n".join([*(f"{m.role}: {m.content}" for m in turns), *answers, ranks]).rstrip()


def leak_text(record: Record) -> str:
    """The prompt without roles, so that it can be compared with prompts in records of another kind."""
    return record.text if isinstance(record, Document) else "\n".join(m.content for m in prompt_messages(record))


def _dropped_findings(records: Records[Any], stops: str | None) -> list[Finding]:
    """`stops` is the error at which a run would stop; without one, a run leaves out the same rows."""
    if not records.dropped:
        return []
    count = sum(records.dropped.values())
    reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(records.dropped.items(), key=lambda item: -item[1]))
    empty = sum(n for reason, n in records.dropped.items() if "empty" in reason)
    found = []
    if empty:
        text = f"{empty} of {len(records) + count} rows have an empty or blank text and are left out"
        found.append(Finding("warning", "empty_target", text, "fill or delete them", empty))
    text = f"{count} of {len(records) + count} rows cannot be used ({one_line(reasons)})"
    cure = "a run leaves them out and counts them, too"
    if stops is not None:
        cure = f"a run stops at the first one: {stops}"
    return [*found, Finding("warning", "dropped", text, cure, count)]


def unread_findings(records: Records[Any]) -> list[Finding]:
    """The columns that the format does not read, each with an example. Those whose name may say something about what
    is to be learned are a warning."""
    n = len(records)
    groups: dict[Severity, list[str]] = {"warning": [], "note": []}
    for column, count in sorted(records.unread.items()):
        line = f"{column} ({count} of {max(n, count)} rows{_example(records, column)})"
        groups["warning" if meanings(column) else "note"].append(line)
    cure = "they stay in meta, which is not learned"
    doubt = "; name a format that reads them, or remove them if they do not say what is to be learned"
    return [
        Finding(
            severity,
            "unread_columns",
            f"format {records.format} does not read the columns {', '.join(lines)}",
            cure + (doubt if severity == "warning" else ""),
        )
        for severity, lines in groups.items()
        if lines
    ]


def _example(records: Records[Any], column: str) -> str:
    values = (record.meta[column] for record in islice(records, LOOKED_AT) if column in record.meta)
    value = next((value for value in values if value not in (None, "", [], {})), None)
    return "" if value is None else f", such as {one_line(value, 40)}"


def _duplicate_findings(
    records: Records[Any], repeats: Sequence[int], near: Sequence[int], same_prompt: Sequence[int]
) -> list[Finding]:
    n = len(records)

    def finding(check: str, rows: Sequence[int], what: str, cure: str) -> list[Finding]:
        if not rows:
            return []
        severity: Severity = "warning" if len(rows) >= 0.01 * n else "note"
        text = f"{len(rows)} of {n} rows {what}"
        ids = tuple(records[row].id for row in rows[:EXAMPLES])
        return [Finding(severity, check, text, cure, len(rows), ids)]

    cure = "delete them: repeated rows count repeatedly in training"
    found = finding("duplicates", repeats, "repeat an earlier row", cure)
    found += finding("near_duplicates", near, f"nearly repeat an earlier row (Jaccard {THRESHOLD:g} or more)", cure)
    asked = sorted(set(same_prompt).difference(repeats))
    if asked and records.kind in (Demonstration, Comparison):
        text = f"{len(asked)} of {n} rows have the same prompt as an earlier row"
        found.append(
            Finding("note", "same_prompt", text, "", len(asked), tuple(records[i].id for i in asked[:EXAMPLES]))
        )
    return found


def _leaks(records: Records[Any], against: Records[Any]) -> tuple[dict[str, Any], list[Finding]]:
    """-> (number of rows of `against` whose prompt is in `records` too, findings)."""
    texts, others = Texts(against, leak_text), Texts(records, leak_text)
    twins = near_matches(texts, others)
    exact = [twin for twin in twins if twin.similarity == 1]
    near = [twin for twin in twins if twin.similarity < 1]
    groups: list[tuple[Severity, str, list[Twin], str]] = [
        ("error", "leak", exact, "in"),
        ("warning", "near_leak", near, "nearly in"),
    ]
    found = []
    for severity, check, group, what in groups:
        if group:
            example = one_line(texts[group[0].row], 80)
            text = f'{len(group)} of {len(against)} prompts of the other set are {what} this one, such as "{example}"'
            cure = "remove them from one of the two: a model cannot be evaluated on its training prompts"
            ids = tuple(against[twin.row].id for twin in group[:EXAMPLES])
            found.append(Finding(severity, check, text, cure, len(group), ids))
    return {"records": len(against), "shared": len(exact), "nearly_shared": len(near)}, found
