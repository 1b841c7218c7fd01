"""Builds tasks for evaluation: rows with reference answers, answer choices, and exemplars for few-shot prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_schema import DataError, Demonstration, Message, prompt_text
from data_schema.few_shot import FewShot, exchange, few_shot_prompt
from data_schema.held_out import task_of
from stages.job import prompt_hash


@dataclass(frozen=True)
class ChoiceRule:
    """Where answer choices come from."""

    source: str = "meta"
    """meta: meta's `answer_choices`. from-targets: the same, or a task's distinct targets if it has no choices and the
    targets are few. none: nothing is ranked."""
    most: int = 20
    """Largest number of distinct targets that count as a set of choices."""


class Example(NamedTuple):
    id: str
    prompt: tuple[Message, ...]  # with exemplars, if any
    references: tuple[str, ...]  # correct answers; the first is the row's own
    choices: tuple[str, ...]  # empty if there are none


class Task(NamedTuple):
    name: str
    examples: list[Example]
    n_rows: int  # in the data, before any was left out
    choices_from: str | None  # "meta" or "targets"; None if nothing is ranked


def build_tasks(
    records: Sequence[Demonstration],
    *,
    by: str | None,
    rule: ChoiceRule,
    shots: int,
    rows: int | None,
    seen: Collection[str],
    seed: int,
) -> tuple[list[Task], Counter[str]]:
    """Return (tasks in order of appearance, number of rows left out by reason).

    `seen` are hashes of prompts that a model was trained on. At most `rows` per task are kept, sampled with the seed;
    exemplars may be any of the task's rows."""
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(task_of(record, by), []).append(place)
    left_out: Counter[str] = Counter()
    tasks = []
    for name, places in groups.items():
        members = [records[place] for place in places]
        fresh = [record for record in members if prompt_hash(record) not in seen]
        left_out["trained on"] += len(members) - len(fresh)
        choices, origin = choices_of(fresh, rule, left_out)
        drawn = sorted(random.Random(f"{seed} {name}").sample(range(len(fresh)), min(rows or len(fresh), len(fresh))))
        examples = []
        for record in (fresh[i] for i in drawn):
            if origin and record.id not in choices:
                continue  # counted by `choices_of`
            prompt = with_exemplars(record, members, shots, seed)
            if prompt is None:
                left_out["no exemplars to show"] += 1
                continue
            examples.append(Example(record.id, prompt, references_of(record), choices.get(record.id, ())))
        if examples:
            tasks.append(Task(name, examples, len(members), origin))
    return tasks, +left_out


def references_of(record: Demonstration) -> tuple[str, ...]:
    """Return the row's answer and the other texts in meta's `references`, stripped and without repeats."""
    listed = record.meta.get("references")
    others = [text for text in listed if isinstance(text, str) and text.strip()] if isinstance(listed, list) else []
    return tuple(dict.fromkeys([record.messages[-1].content.strip(), *(text.strip() for text in others)]))


def choices_of(
    records: Sequence[Demonstration], rule: ChoiceRule, left_out: Counter[str]
) -> tuple[Mapping[str, tuple[str, ...]], str | None]:
    """Return (row id -> its choices, where they come from: "meta", "targets" or None).

    In a task with choices, a row without choices, or whose target is not one of them, is left out and counted."""
    if rule.source == "none":
        return {}, None
    listed = {record.id: _listed_choices(record) for record in records}
    usable = {
        record.id: listed[record.id]
        for record in records
        if len(listed[record.id]) > 1 and set(references_of(record)) & set(listed[record.id])
    }
    if usable:
        left_out["target is none of its choices"] += len(records) - len(usable)
        return usable, "meta"
    targets = tuple(sorted({references_of(record)[0] for record in records}))
    # Targets that hardly recur are not a set of choices, however few they are.
    if rule.source == "from-targets" and 2 <= len(targets) <= min(rule.most, len(records) // 2):
        return {record.id: targets for record in records}, "targets"
    return {}, None


def _listed_choices(record: Demonstration) -> tuple[str, ...]:
    choices: Any = record.meta.get("answer_choices")
    if choices is None:
        return ()
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(
            f"{record.source}: row '{record.id}': meta's answer_choices must be a list of texts, found {choices!r:.80}",
            field="answer_choices",
        )
    return tuple(dict.fromkeys(choice.strip() for choice in choices if choice.strip()))


def with_exemplars(
    record: Demonstration, members: Sequence[Demonstration], shots: int, seed: int
) -> tuple[Message, ...] | None:
    """Return a row's prompt with up to `shots` other rows of its task before the question, joined as in FLAN.

    A row with the same prompt is never shown. Returns None if there is no other row, or for a dialogue."""
    prompt = record.messages[:-1]
    if shots == 0:
        return prompt
    asked = exchange(record, "flan")
    if asked is None:
        return None
    texts = {prompt_text(record)}
    shown = []
    for i in shuffled(len(members), random.Random(f"{seed} {record.id}")):
        text, found = prompt_text(members[i]), exchange(members[i], "flan")
        if found is not None and text not in texts:
            texts.add(text)
            shown.append(found)
        if len(shown) == shots:
            break
    if not shown:
        return None
    return (*prompt[:-1], Message("user", few_shot_prompt(asked, shown, FewShot(k=shots))))


def shuffled(n: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 .. n-1 in random order; the cost is that of the numbers taken, not of n."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)
