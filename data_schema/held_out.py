"""Held-out tasks: data that no training stage may read, so that an evaluation tests tasks that are new to the model.

FLAN (2.2) holds out whole clusters of tasks, T0 (3) whole tasks; neither holds out only rows of a trained task.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_schema.errors import DataError
from data_schema.locations import FileLocation, HubLocation, locate
from data_schema.records import R, Record

log = logging.getLogger("triptych.data")
NAME_FIELDS = ("task", "task_name")  # fields of meta that may name a row's task


@dataclass(frozen=True)
class HeldOutTasks:
    """Tasks and sources that training stages must not read; `evaluate` may."""

    meta: dict[str, list[str]] = field(default_factory=dict)
    """Field of a row's meta (or `group`, the record's own field) -> held-out values, such as {task: [rte, cb],
    cluster: [nli]}. If a row has a list there, one matching value is enough."""
    sources: list[str] = field(default_factory=list)
    """Held-out files and data sets, written like a source's `path`. A data set is held out with all its splits."""
    on_row: Literal["error", "drop"] = "error"
    """What to do with held-out rows in a training source. error: stop the stage; drop: leave out, count and log."""

    def __post_init__(self) -> None:
        if not (self.sources or any(self.meta.values())):
            raise DataError("held_out_tasks is empty; give meta or sources, or leave it out", field="meta")
        if self.on_row not in ("error", "drop"):
            raise DataError(f"held_out_tasks.on_row must be error or drop, found '{self.on_row}'", field="on_row")


def labels(record: Record, name: str) -> list[str]:
    """The values of a field of the record's meta, or of its `group`, as returned by `meta_values`."""
    return meta_values({"group": record.group} if name == "group" else record.meta, name)


def task_of(record: Record, by: str | None) -> str:
    """A row's task: meta's field `by`. With `by` None: meta's `task` or `task_name`, or else the file's name and the
    promptsource template. Raises DataError if meta has no field `by`."""
    for name in (by,) if by else NAME_FIELDS:
        if named := labels(record, name):
            return named[0]
    if by:
        raise DataError(
            f"{record.source}: row '{record.id}' has no '{by}' in meta; it has {', '.join(record.meta) or 'nothing'}",
            field=by,
        )
    stem, separator, _ = record.id.partition(":")  # a record's id is the file's name and the row
    file = stem if separator else Path(record.source).stem
    return "/".join([file, *labels(record, "template")])


def meta_values(meta: Mapping[str, Any], name: str) -> list[str]:
    """The values of a field of `meta` as text: none, one, or the items of a list."""
    value = meta.get(name)
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def keep_out(records: Iterable[R], held_out: HeldOutTasks, place: str, dropped: Counter[str]) -> Iterator[R]:
    """The records that are not held out. The others are counted in `dropped`, or raise DataError if on_row is "error".

    `place` names the source. Logs a warning if no record has any of the fields, since held-out tasks are then not
    recognised."""
    values = {name: frozenset(map(str, listed)) for name, listed in held_out.meta.items()}
    known = False
    for record in records:
        found = [(name, label) for name in values for label in labels(record, name)]
        known = known or bool(found)
        hit = next(((name, label) for name, label in found if label in values[name]), None)
        if hit is None:
            yield record
        elif held_out.on_row == "drop":
            dropped[f"held-out {hit[0]} {hit[1]}"] += 1
        else:
            raise DataError(
                f"{place}: row '{record.id}' has {hit[0]} '{hit[1]}', which held_out_tasks excludes from training;"
                " remove it from the data, or set held_out_tasks.on_row: drop",
                field=hit[0],
            )
    if not known:
        log.warning("%s: no row has %s, so held-out tasks cannot be detected", place, " or ".join(values))


def overlap(path: str, other: str) -> bool:
    """Whether two sources' paths share a file, or a hub data set or folder of one."""
    one, two = locate(path), locate(other)
    if isinstance(one, FileLocation) and isinstance(two, FileLocation):
        return bool({p.resolve() for p in one.paths} & {p.resolve() for p in two.paths})
    if isinstance(one, HubLocation) and isinstance(two, HubLocation):
        return one.name == two.name and (one.folder == two.folder or None in (one.folder, two.folder))
    return one == two
