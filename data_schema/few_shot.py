"""Rewrite demonstrations: add exemplars to the prompt, and reasoning to the answer.

Exemplars come before the question in one user turn, as in FLAN (Wei et al. 2021, 4.3). Or an instruction is given once,
followed by query-response pairs that are sampled several times, as in InstructGPT's labeler demonstrations (3.2, A.3).
Reasoning is FLAN's chain of thought (Chung et al. 2022): the rationale, then the answer.
"""

import hashlib
import logging
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Literal, NamedTuple

from data_schema.errors import DataError
from data_schema.held_out import labels
from data_schema.records import Demonstration, Message, check_text, prompt_text
from data_schema.table import Records

log = logging.getLogger("triptych.data")
RATIONALE = "rationale"  # the field of meta that holds a demonstration's reasoning


@dataclass(frozen=True)
class FewShot:
    """Prompts with exemplars. Only conversations of one question and answer can get exemplars or serve as one."""

    k: int = 4
    """Number of exemplars in a prompt. If its task has fewer other questions, all of them are used."""
    share: float = 0.5
    """Probability that a demonstration gets exemplars; the others stay unchanged."""
    pattern: Literal["flan", "instruction"] = "flan"
    """Where exemplars come from. flan: the same task. instruction: the same instruction, which is written once; it is
    meta's `instruction` if the prompt starts with it, else the text before the prompt's first empty line."""
    draws: int = 1
    """Number of copies of each demonstration with exemplars, each with newly sampled ones (InstructGPT: several)."""
    by: str = "task"
    """Field of meta that names a row's task, or `group`, the record's own field. Rows without it get exemplars from
    the rows of their source that lack it too."""
    question_prefix: str = ""
    """Text before each question, such as "Q: "."""
    answer_prefix: str = ""
    """Text before each exemplar's answer and at the end of the prompt, such as "A: "."""
    delimiter: str = "\n\n"
    """Text between question and answer (FLAN: an empty line)."""
    separator: str = "\n\n\n"
    """Text after each exemplar (FLAN: two empty lines)."""

    def __post_init__(self) -> None:
        for name in ("k", "draws"):
            if getattr(self, name) < 1:
                raise DataError(f"few_shot.{name} must be at least 1, found {getattr(self, name)}", field=name)
        _check_share("few_shot", self.share)
        if self.pattern not in ("flan", "instruction"):
            raise DataError(f"few_shot.pattern must be flan or instruction, found '{self.pattern}'", field="pattern")


@dataclass(frozen=True)
class ChainOfThought:
    """Answers with reasoning, for demonstrations that have a text `rationale` in meta."""

    share: float = 1.0
    """Probability that such a demonstration gets its reasoning; the others keep the plain question and answer."""
    prompt: str = "{prompt}\n\nLet's think step by step."
    """Pattern of the last user turn, which shows the model that an answer with reasoning is wanted."""
    answer: str = "{rationale} The answer is {answer}."
    """Pattern of the answer."""

    def __post_init__(self) -> None:
        _check_share("chain_of_thought", self.share)
        for name, wanted in (("prompt", {"prompt"}), ("answer", {"rationale", "answer"})):
            pattern = getattr(self, name)
            try:
                used = {field for _, field, _, _ in Formatter().parse(pattern) if field is not None}
            except ValueError:
                used = set()
            if used != wanted:
                holds = " and ".join(f"{{{field}}}" for field in sorted(wanted, reverse=True))
                raise DataError(
                    f"chain_of_thought.{name} must contain {holds} and no other field, found '{pattern}'; write"
                    " every other brace twice",
                    field=name,
                )


def _check_share(section: str, share: float) -> None:
    if not 0 < share <= 1:
        raise DataError(f"{section}.share must be above 0 and at most 1, found {share}", field="share")


class Reworded(NamedTuple):
    records: Records[Demonstration]
    changed: int  # number of records that were changed


def reword(
    records: Records[Demonstration], thought: ChainOfThought | None, few_shot: FewShot | None, seed: int
) -> Records[Demonstration]:
    """The demonstrations as they are trained on. Reasoning is added first, so that exemplars have it too. A setting
    that is None is skipped. Raises DataError if one that is not None changes no demonstration."""
    if thought is not None:
        records = _told(
            add_rationales(records, thought, seed), "chain_of_thought", "none has a text 'rationale' in meta"
        )
    if few_shot is not None:
        wanted = "task" if few_shot.pattern == "flan" else "instruction"
        records = _told(add_exemplars(records, few_shot, seed), "few_shot", f"none shares its {wanted} with another")
    return records


def _told(reworded: Reworded, setting: str, cause: str) -> Records[Demonstration]:
    log.info("%s: %d of %d demonstrations", setting, reworded.changed, len(reworded.records))
    if not reworded.changed:
        raise DataError(
            f"{setting} changed no demonstration: {cause}; leave it out, raise its share, or use other data"
        )
    return reworded.records


def add_rationales(records: Records[Demonstration], thought: ChainOfThought, seed: int) -> Reworded:
    """Add reasoning to a share of the demonstrations with a rationale in meta, and ask for it in their prompts.

    An answer that already contains the rationale is rebuilt from meta's `target`; without a target it stays unchanged.
    Changed records have `chain_of_thought` true in meta. Raises DataError for a rationale that is not text."""
    rng = random.Random(f"chain of thought {seed}")

    def change(place: int, record: Demonstration) -> Iterator[Demonstration]:
        rationale = record.meta.get(RATIONALE)
        if rationale is None or rationale == "" or rng.random() >= thought.share:
            return
        try:
            rationale = check_text(rationale, "meta.rationale").strip()
        except DataError as error:
            raise DataError(f"{record.source}: row '{record.id}': {error}; fix or delete it", field=RATIONALE) from None
        *before, prompt, answer = record.messages
        text = answer.content.strip()
        if rationale in text:
            target = record.meta.get("target")
            if not isinstance(target, str):
                return
            text = target.strip()
        if "{answer}." in thought.answer:
            text = text.removesuffix(".")
        turns = (
            Message("user", thought.prompt.format(prompt=prompt.content)),
            Message("assistant", thought.answer.format(rationale=rationale, answer=text)),
        )
        yield replace(record, messages=(*before, *turns), meta={**record.meta, "chain_of_thought": True})

    return _changed(records, change)


def add_exemplars(records: Records[Demonstration], few_shot: FewShot, seed: int) -> Reworded:
    """Put exemplars, other demonstrations of the task, before the question of a share of the demonstrations.

    Exemplars have prompts that differ from the question and from each other, the same system message, and reasoning if
    the question has it; meta's `exemplars` lists their ids. Memory: a few numbers per demonstration, no text."""
    pools = _pools(records, few_shot)
    rng = random.Random(f"few-shot {seed}")

    def change(place: int, record: Demonstration) -> Iterator[Demonstration]:
        pool = pools.members[pools.of[place]] if pools.of[place] >= 0 else ()
        if len(pool) < 2 or rng.random() >= few_shot.share:
            return
        for _ in range(few_shot.draws):
            drawn = rng.sample(pool, min(few_shot.k + 1, len(pool)))
            exemplars = [records[i] for i in [i for i in drawn if i != pools.first[place]][: few_shot.k]]
            asked, *shown = (exchange(one, few_shot.pattern) for one in (record, *exemplars))
            assert asked is not None
            prompt = Message("user", few_shot_prompt(asked, [one for one in shown if one], few_shot))
            meta = {**record.meta, "exemplars": [other.id for other in exemplars]}
            yield replace(record, messages=(*record.messages[:-2], prompt, record.messages[-1]), meta=meta)

    return _changed(records, change)


def _changed(
    records: Records[Demonstration], change: Callable[[int, Demonstration], Iterable[Demonstration]]
) -> Reworded:
    """Each record replaced by its changed forms, or kept if it has none."""
    count = 0

    def stream() -> Iterator[Demonstration]:
        nonlocal count
        for place, record in enumerate(records):
            forms = 0
            for form in change(place, record):
                forms += 1
                yield form
            count += forms
            if not forms:
                yield record

    made = Records.of(Demonstration, stream(), format=records.format, dropped=records.dropped)
    return Reworded(made, count)


class Exchange(NamedTuple):
    instruction: str  # "" if the pattern has none
    question: str
    answer: str


def exchange(record: Demonstration, pattern: str) -> Exchange | None:
    """The demonstration's question and answer; None for a dialogue, and for an instruction that nothing follows."""
    turns = [message.content for message in record.messages if message.role != "system"]
    if len(turns) != 2:
        return None
    prompt, answer = turns
    if pattern == "flan":
        return Exchange("", prompt, answer)
    named = record.meta.get("instruction")
    if isinstance(named, str) and prompt.startswith(named):
        instruction, question = named, prompt.removeprefix(named)
    else:
        instruction, _, question = prompt.partition("\n\n")
    if not (instruction.strip() and question.strip()):
        return None
    return Exchange(instruction.strip(), question.strip(), answer)


def few_shot_prompt(asked: Exchange, exemplars: Sequence[Exchange], few_shot: FewShot) -> str:
    """[instruction SEP] (Q question DELIM A answer SEP)* Q question [DELIM A], as FLAN joins them."""
    parts = [asked.instruction + few_shot.separator] if asked.instruction else []
    for shown in exemplars:
        parts += [few_shot.question_prefix, shown.question, few_shot.delimiter, few_shot.answer_prefix, shown.answer]
        parts.append(few_shot.separator)
    parts += [few_shot.question_prefix, asked.question]
    if few_shot.answer_prefix:
        parts += [few_shot.delimiter, few_shot.answer_prefix.rstrip()]
    return "".join(parts)


class _Pools(NamedTuple):
    """Demonstrations that may be exemplars of one another: the first one of each prompt of a task."""

    members: "list[array[int]]"  # pool -> indices of its demonstrations
    of: "array[int]"  # demonstration -> its pool, -1 if it has none
    first: "array[int]"  # demonstration -> the member of its pool that has its prompt


def _pools(records: Records[Demonstration], few_shot: FewShot) -> _Pools:
    pools = _Pools([], array("q"), array("q"))
    number: dict[int, int] = {}
    place_of: dict[int, int] = {}
    for place, record in enumerate(records):
        asked = exchange(record, few_shot.pattern)
        pool, first = -1, place
        if asked is not None:
            task = next(iter(labels(record, few_shot.by)), "")
            system = record.messages[0].content if record.messages[0].role == "system" else ""
            reasoned = str(record.meta.get("chain_of_thought") is True)
            key = _hash(record.source, task, system, asked.instruction, reasoned)
            pool = number.setdefault(key, len(number))
            if pool == len(pools.members):
                pools.members.append(array("q"))
            first = place_of.setdefault(_hash(str(key), prompt_text(record)), place)
            if first == place:
                pools.members[pool].append(place)
        pools.of.append(pool)
        pools.first.append(first)
    return pools


def _hash(*texts: str) -> int:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return int.from_bytes(digest.digest()[:8])
