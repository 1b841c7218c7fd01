from __future__ import annotations

import hashlib
import random
import tracemalloc
from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from data_schema.duplicates import THRESHOLD, near_duplicates, near_matches, repeated_rows, similarity, text_digest


def grams(text: str) -> set[str]:
    folded = " ".join(text.casefold().split())
    return {folded[i : i + 5] for i in range(max(1, len(folded) - 4))}


def jaccard(a: str, b: str) -> float:
    """By sets of strings, without any hash."""
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def random_text(rng: random.Random, words: int = 40) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(words))


def edited(text: str, n_words: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), n_words):
        words[place] = random_text(rng, 1)
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """300 texts; each has a copy with 0 to 9 of its 40 words replaced, 300 rows later."""
    rng = random.Random(0)
    originals = [random_text(rng) for _ in range(300)]
    return originals + [edited(text, i % 10, rng) for i, text in enumerate(originals)]


def test_similarity_is_the_jaccard_index_of_the_sets_of_5_grams(corpus: list[str]) -> None:
    pairs = [(corpus[i], corpus[300 + i]) for i in range(60)] + [
        ("ab", "ab"),
        ("ab", "ac"),
        ("今天天气很好", "今天天气好"),
    ]
    for a, b in pairs:
        assert similarity(a, b) == pytest.approx(jaccard(a, b), abs=1e-12)


def test_every_reported_twin_is_one_and_few_are_missed(corpus: list[str]) -> None:
    found = {twin.row: twin for twin in near_duplicates(corpus)}
    for row, twin, reported in found.values():
        assert twin < row and reported == pytest.approx(jaccard(corpus[row], corpus[twin])) and reported >= THRESHOLD
    alike = {300 + i for i in range(300) if jaccard(corpus[i], corpus[300 + i]) >= THRESHOLD}
    clearly = {300 + i for i in range(300) if jaccard(corpus[i], corpus[300 + i]) >= 0.87}
    assert clearly <= found.keys() <= alike  # unrelated random texts are never alike
    assert len(found) >= 0.95 * len(alike) > 50


def test_matches_across_two_sets_are_counted_in_each_set_by_itself(corpus: list[str]) -> None:
    originals, copies = corpus[:300], corpus[300:]
    found = near_matches(copies, originals)
    assert {(twin.row, twin.twin) for twin in found} == {(t.row - 300, t.twin) for t in near_duplicates(corpus)}
    assert all(twin.row == twin.twin for twin in found)
    assert near_matches([*copies[:5], *copies[:5]], ["nothing of the kind"]) == []  # twins of one set are no matches


def test_texts_that_differ_in_case_or_white_space_alone_are_alike_to_1() -> None:
    texts = ["Why is the sky blue?", "Where do wrens live?", "why  is the SKY blue?\n"]
    assert near_duplicates(texts) == [(2, 0, 1.0)]


def test_an_instruction_that_all_rows_share_makes_no_two_alike() -> None:
    rng = random.Random(1)
    instruction = random_text(rng, 100)
    rows = [f"{instruction} {random_text(rng, 10)}" for _ in range(60)]
    assert jaccard(rows[0], rows[1]) > THRESHOLD
    assert near_duplicates(rows) == []
    twin = edited(rows[7].removeprefix(instruction), 1, rng)
    assert [(t.row, t.twin) for t in near_duplicates([*rows, f"{instruction}{twin}"], 0.6)] == [(60, 7)]


def test_many_copies_of_one_text_are_found_without_comparing_all_pairs() -> None:
    texts = [f"the same words for everyone, number {i % 3}" for i in range(3_000)]
    assert len(near_duplicates(texts)) == 2_997
    assert (
        near_duplicates([]) == near_duplicates(["one"]) == near_matches([], ["one"]) == near_matches(["one"], []) == []
    )


def test_a_repeated_row_is_named_with_the_first_of_its_text() -> None:
    texts = ["b", "a", "b", "B", "a", "b"]
    assert repeated_rows(array("Q", map(text_digest, texts))) == [(2, 0), (4, 1), (5, 0)]
    assert repeated_rows(array("Q")) == []


def test_memory_does_not_grow_with_the_length_of_the_texts() -> None:
    class Books(Sequence[str]):
        """Sixty texts of 100,000 characters, made when asked for; the last is the first again."""

        def __len__(self) -> int:
            return 60

        def __getitem__(self, at: Any) -> Any:
            if at >= 60:
                raise IndexError
            return hashlib.shake_128(bytes([at % 59])).hexdigest(50_000)

    tracemalloc.start()
    found = near_duplicates(Books())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(twin.row, twin.twin) for twin in found] == [(59, 0)]
    assert peak < 12e6  # the texts' shingles are 24 MB, the texts 6 MB
