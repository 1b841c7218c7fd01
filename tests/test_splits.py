"""No prompt and no group crosses a split, whatever the order of rows."""

import random

import pytest

from data_schema import (
    Comparison,
    DataError,
    Document,
    Message,
    Prompt,
    Records,
    assert_disjoint,
    dedup_prompts,
    prompt_text,
    split,
)

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def prompt(number: int, text: str, group: str | None = None) -> Prompt:
    return Prompt(f"p{number}", "test", (Message("user", text),), group=group)


def records_of(prompts: list[Prompt]) -> Records[Prompt]:
    return Records.of(Prompt, prompts)


def tangled(n: int, rng: random.Random) -> list[Prompt]:
    return [prompt(i, f"Question {rng.randrange(n // 2)}?", group=f"user {rng.randrange(n)}") for i in range(n)]


PROMPTS = tangled(2000, random.Random(0))


def test_neither_prompts_nor_groups_cross_the_parts() -> None:
    parts = split(records_of(PROMPTS), FRACTIONS, seed=1)
    assert sum(map(len, parts.values())) == len(PROMPTS)
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for record in part:
            for key in (prompt_text(record), f"group {record.group}"):
                assert seen.setdefault(key, name) == name


def test_rows_tied_only_over_a_third_stay_together() -> None:
    chain = [prompt(0, "A?", "x"), prompt(1, "B?", "x"), prompt(2, "b? ", "y"), prompt(3, "C?", "y")]
    others = [prompt(10 + i, f"Other {i}?") for i in range(50)]
    for seed in range(20):
        parts = split(records_of(others + chain), {"a": 0.5, "b": 0.5}, seed)
        homes = {name for name, part in parts.items() for record in part if record.id in ("p0", "p1", "p2", "p3")}
        assert len(homes) == 1


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = random.Random(5).sample(PROMPTS, len(PROMPTS))
    one, other = (split(records_of(prompts), FRACTIONS, seed=3) for prompts in (PROMPTS, shuffled))
    for name in FRACTIONS:
        assert {r.id for r in one[name]} == {r.id for r in other[name]}


def test_new_rows_move_no_old_ones() -> None:
    old, new = ([prompt(i, f"Question {i}?") for i in range(n)] for n in (200, 300))
    before, after = (split(records_of(prompts), FRACTIONS, seed=3) for prompts in (old, new))
    for name in FRACTIONS:
        assert {r.id for r in before[name]} <= {r.id for r in after[name]}


def test_parts_are_about_as_large_as_asked_and_differ_by_seed() -> None:
    records = records_of([prompt(i, f"Question {i}?") for i in range(2000)])
    one, other = split(records, FRACTIONS, seed=1), split(records, FRACTIONS, seed=2)
    assert abs(len(one["train"]) - 1600) < 5 * (2000 * 0.8 * 0.2) ** 0.5  # five standard deviations
    assert {r.id for r in one["test"]} != {r.id for r in other["test"]}


def test_documents_of_one_book_and_equal_documents_stay_together() -> None:
    documents = [Document(f"d{i}", "s", f"text {i % 90}", group=f"book {i % 45}") for i in range(180)]
    for part in split(Records.of(Document, documents), {"a": 0.5, "b": 0.5}, seed=0).values():
        assert len(part) == 4 * len({document.group for document in part})


def test_rows_of_one_group_cannot_be_parted_and_that_is_said() -> None:
    documents = [Document(f"t{i}", "test", f"text {i}", group="task 7") for i in range(50)]
    with pytest.raises(DataError, match=r"50 documents\) gets no row; the rows share a group .*do not split"):
        split(Records.of(Document, documents), {"a": 0.5, "b": 0.5}, seed=0)


@pytest.mark.parametrize(
    "fractions, error",
    [
        ({"a": 0.5, "b": 0.4}, "the fractions of a, b add up to 0.9, not 1"),
        ({"a": 1.2, "b": -0.2}, "split 'a' must be a fraction above 0 and at most 1, found 1.2"),
        ({}, "the fractions of no splits add up to 0"),
        ({"a": 0.999999, "b": 0.000001}, r"split 'b' \(1e-06 of 2000 prompts\) gets no row; use more data"),
    ],
)
def test_fractions_that_cannot_be_kept_are_refused(fractions: dict[str, float], error: str) -> None:
    with pytest.raises(DataError, match=error):
        split(records_of(PROMPTS), fractions, seed=0)


def test_the_first_record_of_a_prompt_is_kept_and_the_others_are_counted() -> None:
    records = Records.of(
        Prompt,
        [prompt(0, "A?"), prompt(1, "B?"), prompt(2, " a?"), prompt(3, "A ?"), prompt(4, "b?\n")],
        dropped={"empty answer": 1},
    )
    kept = dedup_prompts(records)
    assert [r.id for r in kept] == ["p0", "p1", "p3"]
    assert kept.dropped == {"empty answer": 1, "duplicate prompt": 2}
    assert dedup_prompts(kept).dropped == kept.dropped


def test_a_leak_is_told_with_number_and_example() -> None:
    train = Records.of(
        Comparison,
        [Comparison(f"c{i}", "s", (Message("user", f"Question {i}?"),), ("a", "b"), (1, 2)) for i in range(5)],
    )
    held_out = records_of([prompt(i, f"question  {i}?") for i in range(3, 9)])
    with pytest.raises(DataError, match=r'2 prompts are both in reward and in test data, such as "user: question 3\?"'):
        assert_disjoint(train, held_out, names=("reward", "test"))
    assert_disjoint(train, records_of([prompt(9, "Question 9?")]))
