"""Mixtures: how much of each source goes into an epoch, and in what order.

Sizes and weights give rates, rates and a number of rows give counts, counts and a seed give the order, a row at a time.
Examples-proportional and temperature mixing as in T5 (Raffel et al. 2020, 3.5.2), with FLAN's cap on the size a data
set counts with (2.4) and T0's (5). We differ: counts are the rates' to the row and spread evenly over the epoch, where
those sample, so that every stretch of training holds the mixture.
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
SHOWN = 12  # parts that the log names


@dataclass(frozen=True)
class Mixture:
    """What an epoch holds of each part of the data. A part is a source, or with `by` one task of a source.

    A part's size is its rows, at most `limit` of them, and counts at most as `cap` (over it, as cap / templates of its
    source, rounded down).
    """

    mode: Literal["proportional", "temperature", "weights"] = "proportional"
    """Rates: proportional to size x weight; to (size x weight)^(1 / temperature); or to each source's weight, shared
    among its parts by size."""
    cap: int | None = None
    """Size that a larger part counts as (FLAN: 3000; T0: 500000, with the source's `templates`)."""
    temperature: float = 1.0
    """1: proportional; .inf: all parts alike (T5: 2)."""
    limit: int | None = None
    """Rows of a part that are used at most, chosen at random (FLAN: 30000)."""
    n_rows: int | None = None
    """Rows of an epoch; null: as many as the sizes (times weights, if proportional) add up to. A row comes again only
    after all others of its part came."""
    by: str | None = None
    """A field of meta, such as task, or `group`, the record's own: each of its values in a source is a part."""

    def __post_init__(self) -> None:
        if self.mode not in ("proportional", "temperature", "weights"):
            raise DataError(
                f"mixture.mode must be proportional, temperature or weights, found '{self.mode}'", field="mode"
            )
        for name in ("cap", "limit", "n_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"mixture.{name} must be at least 1, found {value}; leave it out for none", field=name)
        if not self.temperature > 0:
            raise DataError(f"mixture.temperature must be above 0, found {self.temperature}", field="temperature")
        if self.temperature != 1 and self.mode != "temperature":
            raise DataError(
                f"mixture.temperature means nothing in mode {self.mode}; set mode: temperature", field="temperature"
            )


class Part(NamedTuple):
    """Rows that share one rate."""

    name: str
    n_rows: int  # within the mixture's limit
    source: int = 0  # which of the sources it is of
    weight: float = 1.0  # of that source
    templates: int = 1  # of that source


class Pick(NamedTuple):
    part: int
    row: int  # of that part


def counted_size(n_rows: int, cap: int | None, templates: int = 1) -> int:
    """The size that `n_rows` count as: over the cap, cap / templates rounded down, at least 1.

    With one template this is min(n_rows, cap), FLAN's rule (2.4: a mixing rate maximum of 3,000). With more it is T0's
    (5: a data set of over 500,000 rows counts as 500,000 / templates with each of its templates).
    """
    return n_rows if cap is None or n_rows <= cap else max(1, cap // templates)


def mixing_rates(parts: Sequence[Part], mixture: Mixture) -> list[float]:
    """The share of an epoch that each part has; they add up to 1."""
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
    """Rows of an epoch: `n_rows`, or what the counted sizes add up to, each times its weight if they are proportional.

    So a proportional epoch uses each row at most once, unless a weight above 1 asks for more.
    """
    if mixture.n_rows is not None:
        return mixture.n_rows
    sizes = [counted_size(part.n_rows, mixture.cap, part.templates) for part in parts]
    if mixture.mode == "proportional":
        return max(1, round(math.fsum(part.weight * size for part, size in zip(parts, sizes, strict=True))))
    return sum(sizes)


def row_counts(rates: Sequence[float], n_rows: int) -> list[int]:
    """How many of `n_rows` each rate gets: within 1 of rate x n_rows, `n_rows` in all (largest remainders)."""
    exact = [rate * n_rows for rate in rates]
    # A product that is a rounding error below a whole number is that number.
    counts = [math.floor(share * (1 + 1e-12)) for share in exact]
    left = n_rows - sum(counts)
    by_remainder = sorted(range(len(rates)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[:left]:
        counts[i] += 1
    return counts


def picks(sizes: Sequence[int], counts: Sequence[int], seed: int) -> Iterator[Pick]:
    """`counts[i]` rows of each part i of `sizes[i]` rows, in an order drawn by `seed`; holds 8 bytes a row at most.

    Each of the `counts[i]` equal stretches of the epoch has one row of part i, at a random place in it. Rows of a part
    come in random order; where it gives more than it has, all of them come before any comes again.
    """

    def of_part(part: int) -> Iterator[tuple[float, int, int]]:
        rng, rows = random.Random(f"places {seed} {part}"), endless_rows(sizes[part], f"rows {seed} {part}")
        for turn in range(counts[part]):
            yield (turn + rng.random()) / counts[part], part, next(rows)

    for _, part, row in heapq.merge(*(of_part(part) for part in range(len(sizes)) if counts[part])):
        yield Pick(part, row)


def endless_rows(size: int, seed: str) -> Iterator[int]:
    """All of 0 .. size - 1 in random order, then all in another, and so on."""
    order, rng = array("q", range(size)), random.Random(seed)
    while True:
        for i in range(size):  # a shuffle (Fisher-Yates) that gives each row as soon as it has its place
            j = rng.randrange(i, size)
            order[i], order[j] = order[j], order[i]
            yield order[i]


def check_weights(place: str, sources: Sequence[Source], mixture: Mixture | None) -> None:
    """Raises DataError where weights or templates are given and no mixture reads them, or are wanted and not given."""
    for source in sources:
        for name, given in (("weight", source.weight is not None), ("templates", source.templates != 1)):
            if given and mixture is None:
                raise DataError(
                    f"{place}: '{source.path}' has {name} {getattr(source, name)}, which nothing but sft.data"
                    " under sft.mixture has a use for; take it out, or give sft.mixture",
                    field=name,
                )
        if mixture is not None and mixture.mode == "weights" and source.weight is None:
            raise DataError(
                f"{place}: '{source.path}' has no weight, and mixture.mode is weights; give every source one",
                field="weight",
            )


def load_mixture(
    sources: Sequence[Source], kind: type[R], mixture: Mixture | None, seed: int = 0
) -> tuple[Records[R], dict[str, dict[str, Any]]]:
    """-> (an epoch of the mixture in order, {part: {"rows": it has, "picked": it gives}}).

    Without a mixture: all rows, one source after another, and no account. Raises DataError as `load_all` does, and
    where no row has the field `mixture.by`.
    """
    if mixture is None or not sources:  # the latter complains
        return load_all(sources, kind, seed), {}
    loaded = [load(source, kind, seed) for source in sources]
    whole = concatenate(loaded)
    parts, rows = _parts(sources, loaded, mixture, seed)
    counts = row_counts(mixing_rates(parts, mixture), epoch_rows(parts, mixture))
    account = {part.name: {"rows": part.n_rows, "picked": n} for part, n in zip(parts, counts, strict=True)}
    told = [f"{name} {n['picked']} of {n['rows']} rows" for name, n in list(account.items())[:SHOWN]]
    log.info(
        "mixture: %d rows an epoch from %d parts: %s%s",
        sum(counts), len(parts), "; ".join(told), " .." if len(parts) > SHOWN else "",
    )  # fmt: skip
    order = picks([part.n_rows for part in parts], counts, seed)
    return whole.select(rows[pick.part][pick.row] for pick in order), account


def _parts(
    sources: Sequence[Source], loaded: Sequence[Records[R]], mixture: Mixture, seed: int
) -> tuple[list[Part], list[Sequence[int]]]:
    """-> (the parts, the places of each part's rows in all sources laid end to end)."""
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
                places = array("q", random.Random(f"limit {seed} {name}").sample(places, mixture.limit))
            weight = 1.0 if source.weight is None else source.weight
            parts.append(Part(name, len(places), number, weight, source.templates))
            rows.append(places)
        start += len(records)
    if not found:
        there = f"they have {', '.join(sorted(seen))}" if seen else "it is empty"
        raise DataError(
            f"mixture.by is '{mixture.by}', but no row has it in meta ({there}); name another or leave it out",
            field="by",
        )
    return parts, rows
