"""Splits that keep each prompt and each group in one part, and a check that two sets share no prompt."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from data_schema.errors import DataError
from data_schema.records import KIND_NAMES, R, prompt_text
from data_schema.table import Records


def split(records: Records[R], fractions: Mapping[str, float], seed: int) -> dict[str, Records[R]]:
    """Split the records into named parts of about the given fractions, which must add up to 1.

    Rows that share a group or a prompt, directly or through other rows, stay together. A hash of their prompts and
    groups decides their part; the order of rows and other rows do not matter, so new rows move old ones only if they
    connect them. Raises DataError for invalid fractions and for a part that gets no row."""
    _check_fractions(fractions)
    clusters = _Clusters()
    keys = [[clusters.add(key) for key in _keys(record)] for record in records]
    for row_keys in keys:
        clusters.join(row_keys)
    indices: dict[str, list[int]] = {name: [] for name in fractions}
    for i, row_keys in enumerate(keys):
        indices[_part(clusters.root(row_keys[0]), fractions, seed)].append(i)
    for name, chosen in indices.items():
        if not chosen:
            cure = "use more data, a larger fraction or another seed"
            if len({clusters.root(row_keys[0]) for row_keys in keys}) < len(fractions):  # none of these would help
                cure = "the rows share a group (such as a task) or a prompt; add others, or do not split"
            raise DataError(
                f"split '{name}' ({fractions[name]:g} of {len(records)} {KIND_NAMES[records.kind]}) gets no row;"
                f" {cure}",
                field=name,
            )
    return {name: records.select(chosen) for name, chosen in indices.items()}


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise DataError(f"split '{name}' must be a fraction above 0 and at most 1, found {fraction}", field=name)
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-9:
        raise DataError(f"the fractions of {', '.join(fractions) or 'no splits'} add up to {total:g}, not 1")


def _keys(record: Any) -> Iterator[int]:
    yield _hash(f"prompt {prompt_text(record)}")
    if record.group is not None:
        yield _hash(f"group {record.group}")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _part(cluster: int, fractions: Mapping[str, float], seed: int) -> str:
    draw = _hash(f"split {seed} {cluster}") / 2**64
    for name, fraction in fractions.items():
        draw -= fraction
        if draw < 0:
            return name
    return list(fractions)[-1]  # rounding kept the fractions below 1


class _Clusters:
    """Union-find whose representative is the smallest member, whatever the order of joining."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def add(self, key: int) -> int:
        self._parent.setdefault(key, key)
        return key

    def root(self, key: int) -> int:
        while (parent := self._parent[key]) != key:
            self._parent[key] = self._parent[parent]  # path halving
            key = parent
        return key

    def join(self, keys: list[int]) -> None:
        roots = sorted({self.root(key) for key in keys})
        for other in roots[1:]:
            self._parent[other] = roots[0]


def dedup_prompts(records: Records[R]) -> Records[R]:
    """Keep the first record of each prompt (for documents, of each text); the others are counted as dropped."""
    seen: set[int] = set()
    kept = []
    for i, record in enumerate(records):
        key = _hash(prompt_text(record))
        if key not in seen:
            seen.add(key)
            kept.append(i)
    n_dropped = len(records) - len(kept)
    if not n_dropped:
        return records
    before = records.dropped.get("duplicate prompt", 0)
    return records.select(kept).with_dropped({**records.dropped, "duplicate prompt": before + n_dropped})


def assert_disjoint(a: Records[Any], b: Records[Any], names: tuple[str, str] = ("the first", "the second")) -> None:
    """Raise DataError if a prompt of `a` is also in `b`. `names` are used in the message."""
    in_a = {_hash(prompt_text(record)) for record in a}
    shared: dict[int, str] = {}
    for record in b:
        text = prompt_text(record)
        if (key := _hash(text)) in in_a:
            shared.setdefault(key, text)
    if shared:
        example = next(iter(shared.values())).replace("\n", " ")
        shown = example if len(example) <= 80 else example[:77] + "..."
        raise DataError(
            f'{len(shared)} prompts are both in {names[0]} and in {names[1]} data, such as "{shown}";'
            " split one source with data_schema.split, or choose other rows (skip, limit, split)"
        )
