"""Mixtures: how much of each source an epoch contains, and in what order.

Sizes and weights determine rates; rates and a number of rows determine counts; counts and a seed determine the order.
Examples-proportional and temperature mixing follow T5 (Raffel et al. 2020, 3.5.2); the cap on the size that a data set
counts as follows FLAN (2.4) and T0 (5). These sample rows; we differ in that counts match the rates to the row and are
spread evenly over the epoch, so that every stretch of training contains the mixture.
"""

import heapq
import logging
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data_schema.errors import DataError
from data_schema.held_out import labels
from data_schema.records import R
from data_schema.sources import Source, load, load_all
from data_schema.table import Records, concatenate

log = logging.getLogger("triptych.data")
SHOWN = 12  # parts that the log lists


@dataclass(frozen=True)
class Mixture:
    """How much of each part of the data an epoch contains. A part is a source or, with `by`, one task of a source.

    A part's size is its number of rows, at most `limit`. A size above `cap` counts as cap / templates of its source,
    rounded down."""

    mode: Literal["proportional", "temperature", "weights"] = "proportional"
    """Rule for the rates. proportional: to size x weight; temperature: to (size x weight)^(1 / temperature); weights:
    to each source's weight, shared among its parts by size."""
    cap: int | None = None
    """Size that a larger part counts as, divided by its source's `templates` (FLAN: 3000; T0: 500000). null: no cap."""
    temperature: float = 1.0
    """Temperature of mode temperature. 1: proportional; .inf: the same rate for all parts (T5: 2)."""
    limit: int | None = None
    """Maximum number of rows of a part to use, chosen at random (FLAN: 30000). null: all."""
    n_rows: int | None = None
    """Number of rows in an epoch. null: the sum of the sizes (times weights in mode proportional). A row is repeated
    only after all others of its part were used."""
    by: str | None = None
    """Field of meta, such as task (or `group`, the record's own), that splits a source into parts. null: no split."""

    def __post_init__(self) -> None:
        if self.mode not in ("proportional", "temperature", "weights"):
            raise DataError(
                f"mixture.mode must be proportional, temperature or weights, found '{self.mode}'", field="mode"
            )
        for name in ("cap", "limit", "n_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"mixture.{name} must be at least 1, found {value}; or leave it out", field=name)
        if not self.temperature > 0:
            raise DataError(f"mixture.temperature must be above 0, found {self.temperature}", field="temperature")
        if self.temperature != 1 and self.mode != "temperature":
            raise DataError(
                f"mixture.temperature has no effect in mode {self.mode}; set mode: temperature", field="temperature"
            )


class Part(NamedTuple):
    """Rows that share one rate."""

    name: str
    n_rows: int  # at most the mixture's limit
    source: int = 0  # index of its source
    weight: float = 1.0  # of that source
    templates: int = 1  # of that source


class Pick(NamedTuple):
    part: int
    row: int  # of that part


def counted_size(n_rows: int, cap: int | None, templates: int = 1) -> int:
    """The size that `n_rows` rows count as: above the cap, cap / templates rounded down, at least 1.

    With one template this is min(n_rows, cap), FLAN's rule (2.4: a mixing rate maximum of 3,000). With more it is T0's
    (5: a data set of over 500,000 rows counts as 500,000 / templates for each of its templates)."""
    return n_rows if cap is None or n_rows <= cap else max(1, cap // templates)


def mixing_rates(parts: Sequence[Part], mixture: Mixture) -> list[float]:
    """Each part's share of an epoch; the shares add up to 1."""
    sizes = [counted_size(part.n_rows, mixture.cap, part.templates) for part in parts]
    if mixture.mode == "weights":
        of_source: dict[int, int] = {}
        for part, size in zip(parts, sizes, strict=True):
            of_source[part.source] = of_source.get(part.source, 0) + size
        shares = [part.weight * size / of_source[part.source] for part, size in zip(parts, sizes, strict=True)]
    else:
        power = 1 / mixture.temperature
        shares = [(part.weight * size) ** power for part, size in zip(parts, sizes, strict=True)]
    total = math.fsum(shares)
    return [share / total for share in shares]


def epoch_rows(parts: Sequence[Part], mixture: Mixture) -> int:
    """Rows of an epoch: `n_rows`, or else the sum of the counted sizes, each times its weight in mode proportional.

    So a proportional epoch uses each row at most once, unless a weight is above 1."""
    if mixture.n_rows is not None:
        return mixture.n_rows
    sizes = [counted_size(part.n_rows, mixture.cap, part.templates) for part in parts]
    if mixture.mode == "proportional":
        return max(1, round(math.fsum(part.weight * size for part, size in zip(parts, sizes, strict=True))))
    return sum(sizes)


def row_counts(rates: Sequence[float], n_rows: int) -> list[int]:
    """The number of rows for each rate: within 1 of rate x n_rows, `n_rows` in all (largest remainders)."""
    exact = [rate * n_rows for rate in rates]
    # A product that is a rounding error below a whole number is that number.
    counts = [math.floor(share * (1 + 1e-12)) for share in exact]
    left = n_rows - sum(counts)
    by_remainder = sorted(range(len(rates)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[:left]:
        counts[i] += 1
    return counts


def picks(sizes: Sequence[int], counts: Sequence[int], seed: int) -> Iterator[Pick]:
    """Yield `counts[i]` rows of each part i of `sizes[i]` rows, in an order set by `seed`. Uses at most 8 bytes a row.

    Each of the `counts[i]` equal stretches of the epoch has one row of part i, at a random place in it. A part's rows
    come in random order; if it gives more rows than it has, all of them come before any is repeated."""

    def of_part(part: int) -> Iterator[tuple[float, int, int]]:
        rng, rows = random.Random(f"places {seed} {part}"), endless_rows(sizes[part], f"rows {seed} {part}")
        for turn in range(counts[part]):
            yield (turn + rng.random()) / counts[part], part, next(rows)

    for _, part, row in heapq.merge(*(of_part(part) for part in range(len(sizes)) if counts[part])):
        yield Pick(part, row)


def endless_rows(size: int, seed: str) -> Iterator[int]:
    """All of 0 .. size - 1 in random order, then all again in another order, and so on."""
    order, rng = array("q", range(size)), random.Random(seed)
    while True:
        for i in range(size):  # Fisher-Yates shuffle, yielding each row as soon as its place is fixed
            j = rng.randrange(i, size)
            order[i], order[j] = order[j], order[i]
            yield order[i]


def check_weights(place: str, sources: Sequence[Source], mixture: Mixture | None) -> None:
    """Raise DataError if weights or templates are given without a mixture, or if weights are needed and missing."""
    for source in sources:
        for name, given in (("weight", source.weight is not None), ("templates", source.templates != 1)):
            if given and mixture is None:
                raise DataError(
                    f"{place}: '{source.path}' has {name} {getattr(source, name)}, which only sft.data with"
                    " sft.mixture uses; remove it, or set sft.mixture",
                    field=name,
                )
        if mixture is not None and mixture.mode == "weights" and source.weight is None:
            raise DataError(
                f"{place}: '{source.path}' has no weight, but mixture.mode is weights; give every source a weight",
                field="weight",
            )


def load_mixture(
    sources: Sequence[Source], kind: type[R], mixture: Mixture | None, seed: int = 0
) -> tuple[Records[R], dict[str, dict[str, Any]]]:
    """-> (an epoch of the mixture in order, {part: {"rows": rows it has, "picked": rows drawn from it}}).

    Without a mixture: all rows, one source after another, and an empty dict. Raises DataError as `load_all` does, and
    if no row has the field `mixture.by`."""
    if mixture is None or not sources:  # without sources load_all raises
        return load_all(sources, kind, seed), {}
    loaded = [load(source, kind, seed) for source in sources]
    whole = concatenate(loaded)
    parts, rows = _parts(sources, loaded, mixture, seed)
    counts = row_counts(mixing_rates(parts, mixture), epoch_rows(parts, mixture))
    account = {part.name: {"rows": part.n_rows, "picked": n} for part, n in zip(parts, counts, strict=True)}
    told = [f"{name} {n['picked']} of {n['rows']} rows" for name, n in list(account.items())[:SHOWN]]
    log.info(
        "mixture: %d rows per epoch from %d parts: %s%s",
        sum(counts), len(parts), "; ".join(told), " .." if len(parts) > SHOWN else "",
    )  # fmt: skip
    order = picks([part.n_rows for part in parts], counts, seed)
    return whole.select(rows[pick.part][pick.row] for pick in order), account


def _parts(
    sources: Sequence[Source], loaded: Sequence[Records[R]], mixture: Mixture, seed: int
) -> tuple[list[Part], list[Sequence[int]]]:
    """-> (the parts, each part's rows as indices into the concatenated sources)."""
    parts: list[Part] = []
    rows: list[Sequence[int]] = []
    names: dict[str, int] = {}
    seen: set[str] = set()
    start, found = 0, mixture.by is None
    for number, (source, records) in enumerate(zip(sources, loaded, strict=True)):
        names[source.path] = names.get(source.path, 0) + 1
        label = source.path if names[source.path] == 1 else f"{source.path} ({names[source.path]})"
        members: dict[str, Sequence[int]] = {label: range(start, start + len(records))}
        if mixture.by is not None:
            values: dict[str, array[int]] = {}
            for place, record in enumerate(records, start):
                value = next(iter(labels(record, mixture.by)), None)
                found = found or value is not None
                if value is None and len(seen) < SHOWN:
                    seen.update(record.meta)
                values.setdefault(label if value is None else f"{label}: {value}", array("q")).append(place)
            members = dict(values)
        for name, places in members.items():
            if mixture.limit is not None and len(places) > mixture.limit:
                part = f"{number}{name.removeprefix(label)}"  # not the path: a moved file gives the same rows
                places = array("q", random.Random(f"limit {seed} {part}").sample(places, mixture.limit))
            weight = 1.0 if source.weight is None else source.weight
            parts.append(Part(name, len(places), number, weight, source.templates))
            rows.append(places)
        start += len(records)
    if not found:
        there = f"they have {', '.join(sorted(seen))}" if seen else "it is empty"
        raise DataError(
            f"mixture.by is '{mixture.by}', but no row has it in meta ({there}); name another field or leave it out",
            field="by",
        )
    return parts, rows
