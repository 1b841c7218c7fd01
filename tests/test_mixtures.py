from __future__ import annotations

import json
import logging
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_schema import DataError, Demonstration, Mixture, Source, load_all
from data_schema.mixtures import (
    Part,
    check_weights,
    counted_size,
    endless_rows,
    epoch_rows,
    load_mixture,
    mixing_rates,
    picks,
    row_counts,
)

INFINITY = float("inf")


def parts_of(*sizes: int, weights: tuple[float, ...] = (1, 1, 1, 1, 1, 1)) -> list[Part]:
    return [Part(f"part {i}", size, i, weights[i]) for i, size in enumerate(sizes)]


def written(path: Path, n_rows: int, task: str | None = None) -> str:
    rows = [
        {"prompt": f"{path.stem} {i} ?", "completion": "yes"} | ({"task": task} if task else {}) for i in range(n_rows)
    ]
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def origins(records: Any) -> Counter[str]:
    return Counter(record.messages[0].content.split()[0] for record in records)


# ---- rates


def test_proportional_rates_are_shares_of_the_rows() -> None:
    assert mixing_rates(parts_of(600, 300, 100), Mixture()) == pytest.approx([0.6, 0.3, 0.1])


def test_over_the_cap_a_part_counts_as_the_cap() -> None:
    """FLAN: 10,000 and 4,000 rows count alike under a maximum of 3,000."""
    rates = mixing_rates(parts_of(10_000, 4_000, 1_500), Mixture(cap=3000))
    assert rates == pytest.approx([3000 / 7500, 3000 / 7500, 1500 / 7500])


def test_t0_divides_the_cap_of_a_large_set_among_its_templates_and_leaves_small_sets_alone() -> None:
    assert counted_size(500_001, 500_000, 9) == 55_555
    assert counted_size(500_000, 500_000, 9) == 500_000
    assert counted_size(3, 2, 5) == 1


def test_temperature_leads_from_proportional_to_equal_shares() -> None:
    def rates(temperature: float) -> list[float]:
        return mixing_rates(parts_of(900, 100), Mixture(mode="temperature", temperature=temperature))

    assert rates(1) == pytest.approx([0.9, 0.1])
    assert rates(2) == pytest.approx([0.75, 0.25])  # 30 and 10, the square roots
    assert rates(INFINITY) == [0.5, 0.5]


def test_a_weight_multiplies_the_size() -> None:
    assert mixing_rates(parts_of(100, 100, weights=(3, 1)), Mixture()) == pytest.approx([0.75, 0.25])


def test_in_mode_weights_sizes_matter_only_within_a_source() -> None:
    parts = [Part("a", 900, 0, 0.4), Part("b", 100, 0, 0.4), Part("c", 7, 1, 0.6)]
    assert mixing_rates(parts, Mixture(mode="weights")) == pytest.approx([0.36, 0.04, 0.6])


# ---- an epoch


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (Mixture(), 14_500),
        (Mixture(cap=3000), 3000 + 3000 + 1500),
        (Mixture(mode="temperature", temperature=2, cap=3000), 7500),
        (Mixture(mode="weights", cap=3000), 7500),
        (Mixture(cap=3000, n_rows=50), 50),
    ],
)
def test_an_epoch_is_as_long_as_the_counted_sizes_together(mixture: Mixture, expected: int) -> None:
    assert epoch_rows(parts_of(9000, 4000, 1500), mixture) == expected


def test_row_counts_are_whole_within_one_of_the_rates_and_add_up() -> None:
    rates = mixing_rates(parts_of(7, 11, 13, 1), Mixture(mode="temperature", temperature=3))
    for n_rows in (1, 5, 1000, 99_999):
        counts = row_counts(rates, n_rows)
        assert sum(counts) == n_rows
        assert all(abs(count - rate * n_rows) < 1 for count, rate in zip(counts, rates, strict=True))


def test_proportional_counts_are_the_sizes_whatever_the_rounding_of_rates() -> None:
    sizes = [3, 7, 49, 1_000_003, 1, 1]
    assert row_counts(mixing_rates(parts_of(*sizes), Mixture()), sum(sizes)) == sizes


# ---- the order


def test_an_uncapped_proportional_epoch_has_every_row_once() -> None:
    sizes = [50, 20, 5]
    found = list(picks(sizes, sizes, seed=0))
    assert sorted(found) == [(part, row) for part, size in enumerate(sizes) for row in range(size)]


def test_a_row_comes_again_only_after_all_others_of_its_part() -> None:
    rows = [pick.row for pick in picks([10, 3], [6, 8], seed=1) if pick.part == 1]
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2] and len(set(rows[6:])) == 2
    capped = [pick.row for pick in picks([10, 3], [6, 8], seed=1) if pick.part == 0]
    assert len(set(capped)) == 6


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    def order(seed: int) -> list[tuple[int, int]]:
        return list(picks([40, 30], [40, 20], seed))

    assert order(3) == order(3) != order(4)
    assert [pick[0] for pick in order(3)] != [pick[0] for pick in order(4)]


def test_every_stretch_of_an_epoch_holds_the_mixture() -> None:
    """The k-th row of a part comes in the k-th of its equal stretches, so no count is off by more than one; shares of
    drawn rows would be off by about sqrt(n p (1 - p)), here 22."""
    counts = [5000, 3000, 2000]
    seen = [0, 0, 0]
    for number, pick in enumerate(picks([9000, 3000, 100], counts, seed=0), 1):
        seen[pick.part] += 1
        if number % 1000 == 0:
            assert all(abs(seen[i] - counts[i] * number / 10_000) < 3 for i in range(3))
    assert seen == counts


def test_rows_are_drawn_evenly() -> None:
    """A chi-square of 99 degrees of freedom over 100 rows drawn 20 at a time by 500 seeds; 170 is 5 deviations off."""
    drawn = Counter(pick.row for seed in range(500) for pick in picks([100], [20], seed))
    assert sum((drawn[row] - 100) ** 2 / 100 for row in range(100)) < 170


def test_a_million_virtual_rows_need_eight_bytes_each() -> None:
    sizes = [700_000, 300_000]
    tracemalloc.start()
    found = list(islice(picks(sizes, sizes, seed=0), 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000
    assert peak < 1.2 * 8 * sum(sizes)


def test_endless_rows_go_on_in_another_order() -> None:
    rows = endless_rows(50, "seed")
    first, second = list(islice(rows, 50)), list(islice(rows, 50))
    assert first != second and sorted(first) == sorted(second) == list(range(50))


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "even"}, "mixture.mode must be proportional, temperature or weights, found 'even'"),
        ({"cap": 0}, "mixture.cap must be at least 1, found 0"),
        ({"n_rows": 0}, "mixture.n_rows must be at least 1"),
        ({"mode": "temperature", "temperature": 0}, "mixture.temperature must be above 0, found 0"),
        ({"temperature": 2}, "mixture.temperature has no effect in mode proportional"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(**settings)


def test_weights_without_a_mixture_and_a_mixture_without_its_weights_are_refused() -> None:
    with pytest.raises(DataError, match=r"sft\.data: 'a' has weight 2, .* remove it"):
        check_weights("sft.data", [Source("a", weight=2)], None)
    with pytest.raises(DataError, match=r"sft\.data: 'b' has no weight, but mixture\.mode is weights"):
        check_weights("sft.data", [Source("a", weight=2), Source("b")], Mixture(mode="weights"))
    with pytest.raises(DataError, match="weight must be above 0, found 0"):
        Source("a", weight=0)


# ---- from sources


def test_without_a_mixture_sources_are_read_as_ever(tmp_path: Path) -> None:
    sources = [Source(written(tmp_path / "a.jsonl", 5)), Source(written(tmp_path / "b.jsonl", 3))]
    records, account = load_mixture(sources, Demonstration, None)
    assert (records.fingerprint, account) == (load_all(sources, Demonstration).fingerprint, {})


def test_a_capped_mixture_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "triptych.data")
    sources = [Source(written(tmp_path / f"{name}.jsonl", n)) for name, n in (("a", 40), ("b", 25), ("c", 4))]
    records, account = load_mixture(sources, Demonstration, Mixture(cap=20), seed=1)
    assert origins(records) == {"a": 20, "b": 20, "c": 4}
    assert len({record.id for record in records}) == 44
    assert account[sources[0].path] == {"rows": 40, "picked": 20}
    assert "mixture: 44 rows per epoch from 3 parts" in caplog.text
    again, _ = load_mixture(sources, Demonstration, Mixture(cap=20), seed=1)
    other, _ = load_mixture(sources, Demonstration, Mixture(cap=20), seed=2)
    assert [r.id for r in records] == [r.id for r in again] != [r.id for r in other]


def test_weights_decide_alone_and_a_small_source_repeats(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.jsonl", 30), written(tmp_path / "b.jsonl", 5)
    sources = [Source(a, weight=1), Source(b, weight=1)]
    records, _ = load_mixture(sources, Demonstration, Mixture(mode="weights", n_rows=40))
    assert origins(records) == {"a": 20, "b": 20}
    assert set(Counter(r.id for r in records if r.source == b).values()) == {4}


def test_a_weight_of_two_uses_each_row_twice(tmp_path: Path) -> None:
    sources = [Source(written(tmp_path / "a.jsonl", 6), weight=2), Source(written(tmp_path / "b.jsonl", 4))]
    records, _ = load_mixture(sources, Demonstration, Mixture())
    assert sorted(Counter(record.id for record in records).values()) == [1] * 4 + [2] * 6


def test_tasks_of_one_file_can_be_mixed_as_sources_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for task, n_rows in (("rte", 30), ("cb", 10), (None, 5)):
        written(path, n_rows, task)
    records, account = load_mixture([Source(str(path))], Demonstration, Mixture(cap=12, by="task"))
    assert Counter(record.meta.get("task") for record in records) == {"rte": 12, "cb": 10, None: 5}
    assert account[f"{path}: rte"] == {"rows": 30, "picked": 12}
    with pytest.raises(DataError, match=r"mixture\.by is 'tsk', but no row has it in meta \(they have task\)"):
        load_mixture([Source(str(path))], Demonstration, Mixture(by="tsk"))


def test_a_limit_leaves_the_same_random_rows_of_a_part_for_all_its_turns(tmp_path: Path) -> None:
    source = Source(written(tmp_path / "a.jsonl", 100))
    records, account = load_mixture([source], Demonstration, Mixture(limit=10, n_rows=30))
    found = Counter(record.id for record in records)
    assert set(found.values()) == {3} and len(found) == 10
    assert found.keys() != {f"a:{i}" for i in range(1, 11)}  # no mere head of the file
    assert account[source.path] == {"rows": 10, "picked": 30}


def test_the_fingerprint_knows_the_rows_and_not_the_weight(tmp_path: Path) -> None:
    from data_schema import fingerprint

    path = written(tmp_path / "a.jsonl", 3)
    assert fingerprint(Source(path, weight=2, templates=3)) == fingerprint(Source(path))
