"""Tasks whose rows all have the same answer, which teach that answer whatever is asked.

A sample from the head of a file sorted by label is like that: ten film reviews of a template, all of them negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from data_schema import Demonstration, Record
from data_schema.held_out import task_of
from stages.data_checks.findings import EXAMPLES, Finding, one_line

ENOUGH_ROWS = 8  # of two answers drawn alike, one in 128 such tasks would have but one


def one_answer_findings(records: Iterable[Record]) -> list[Finding]:
    """A finding that names such tasks (see `task_of`), if there are any; none for other kinds than demonstrations."""
    rows: Counter[str] = Counter()
    only: dict[str, str] = {}  # the answer of those tasks that have had no other so far
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
        f"{len(tasks)} of {len(rows)} tasks ({count} of {rows.total()} rows) have one answer in all of their rows, "
        f"such as {example}"
    )
    cure = "add rows with other answers or leave the tasks out: they teach that answer, whatever is asked"
    return [Finding("warning", "one_answer", text, cure, count, tuple(tasks[:EXAMPLES]))]
