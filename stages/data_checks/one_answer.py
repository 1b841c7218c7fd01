"""Finds tasks whose rows all have the same answer: a model trained on them gives that answer to any question.

The first rows of a file sorted by label are an example: ten film reviews with the same template, all negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from data_schema import Demonstration, Record
from data_schema.held_out import task_of
from stages.data_checks.findings import EXAMPLES, Finding, one_line

ENOUGH_ROWS = 8  # with two equally likely answers, one task in 128 would show only one of them


def one_answer_findings(records: Iterable[Record]) -> list[Finding]:
    """One finding that names such tasks (see `task_of`), or none. Only demonstrations are checked."""
    rows: Counter[str] = Counter()
    only: dict[str, str] = {}  # task -> its answer, for tasks with a single answer so far
    for record in records:
        if not isinstance(record, Demonstration):
            break
        task, answer = task_of(record, by=None), record.messages[-1].content.strip()
        if task not in rows:
            only[task] = answer
        elif only.get(task) != answer:
            only.pop(task, None)
        rows[task] += 1
    tasks = [task for task in only if rows[task] >= ENOUGH_ROWS]
    if not tasks:
        return []
    count, example = sum(rows[task] for task in tasks), f'"{one_line(only[tasks[0]], 40)}" in {tasks[0]}'
    text = (
        f"{len(tasks)} of {len(rows)} tasks ({count} of {rows.total()} rows) have the same answer in all rows, "
        f"such as {example}"
    )
    cure = "add rows with other answers or leave the tasks out: they teach this answer to any question"
    return [Finding("warning", "one_answer", text, cure, count, tuple(tasks[:EXAMPLES]))]
