"""Tasks to evaluate on: rows with one right answer or several, the answer choices, and exemplars for few shots."""

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
    """meta: meta's `answer_choices`. from-targets: those, and where a task has none its distinct targets if they are
    few. none: nothing is ranked."""
    most: int = 20
    """Distinct targets that are still a set of choices."""


class Example(NamedTuple):
    id: str
    prompt: tuple[Message, ...]  # with exemplars, if there are any
    references: tuple[str, ...]  # right answers, the first is the row's own
    choices: tuple[str, ...]  # empty where there are none


class Task(NamedTuple):
    name: str
    examples: list[Example]
    n_rows: int  # of the data, before any was left out
    choices_from: str | None  # "meta" or "targets"; None where nothing is ranked


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
    """-> (tasks in order of appearance, rows left out by reason).

    `seen` are hashes of prompts that a model was trained on. At most `rows` of a task, drawn by the seed, are kept;
    exemplars may be any of its rows.
    """
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
    """The answer, and what else meta's `references` lists."""
    listed = record.meta.get("references")
    others = [text for text in listed if isinstance(text, str) and text.strip()] if isinstance(listed, list) else []
    return tuple(dict.fromkeys([record.messages[-1].content.strip(), *(text.strip() for text in others)]))


def choices_of(
    records: Sequence[Demonstration], rule: ChoiceRule, left_out: Counter[str]
) -> tuple[Mapping[str, tuple[str, ...]], str | None]:
    """-> (id of a row -> its choices, where they come from: "meta", "targets" or None).

    In a task with choices, a row without them or with a target that is none of them is left out and counted.
    """
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
    # Targets that hardly recur are no set of choices, however few they are.
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
    """The prompt of a row, with up to `shots` others of its task before the question, as FLAN joins them.

    Never the row itself, nor one with the same prompt. None where there is no other, or for a dialogue.
    """
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
    """The numbers below n in random order; the first cost no more than themselves."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)
