"""Find rows with the same text, and rows with nearly the same text.

Near duplicates are measured by the Jaccard similarity of their sets of character 5-grams, which needs no word
boundaries and so works for Chinese as well as English. 5-grams that occur in a quarter of the rows are ignored, so an
instruction repeated in a whole task file does not make its rows alike. MinHash with banding proposes pairs (Broder
1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.3-3.4), and each pair is then measured exactly: every
reported pair is real, but pairs that no band proposes are missed. The search stores hashes, a few hundred bytes a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from data_schema.records import normalise

if TYPE_CHECKING:
    import numpy as np

    Hashes = np.ndarray[Any, np.dtype[np.uint32]]
    Keys = np.ndarray[Any, np.dtype[np.uint64]]

THRESHOLD = 0.8  # lowest similarity of near duplicates
SHINGLE = 5  # characters
# A pair of similarity s shares a band with probability p = s^6, and is proposed if it shares two of the twenty bands:
# 0.981 of the pairs at the threshold, 0.9996 at 0.9, 0.04 at 0.5.
BANDS, BAND_ROWS, BANDS_SHARED = 20, 6, 2
COMMON_SHARE, COMMON_ROWS = 0.25, 20  # a 5-gram in this share and this number of rows is ignored
SAMPLE = 500  # rows sampled to find these 5-grams
CHUNK = 512  # shingles hashed at a time: bounds the memory that a long text needs, and fits in the cache


class Twin(NamedTuple):
    row: int
    twin: int  # the similar row: an earlier one, or one of the other set
    similarity: float  # Jaccard, 1.0 for texts that differ only in case, white space or Unicode form


def text_digest(text: str) -> int:
    """A 64-bit digest of the exact text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def repeated_rows(digests: array[int]) -> list[tuple[int, int]]:
    """(row, first row with the same digest) of each row that repeats an earlier one; `digests` has type code "Q"."""
    import numpy as np

    if not digests:
        return []
    values = np.frombuffer(digests, dtype=np.uint64)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    firsts = first[inverse]
    rows = np.flatnonzero(firsts != np.arange(len(values)))
    return list(zip(rows.tolist(), firsts[rows].tolist(), strict=True))


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[Twin]:
    """Each row that is similar to an earlier one, with one such row. Texts are compared after `normalise`."""
    return _twins(texts, 0, threshold)


def near_matches(texts: Sequence[str], others: Sequence[str], threshold: float = THRESHOLD) -> list[Twin]:
    """Each row of `texts` that is similar to one of `others`, with one such row; `twin` is an index into `others`."""
    both = _Joined(others, texts)
    n_others = len(others)
    return [Twin(row - n_others, twin, similarity) for row, twin, similarity in _twins(both, n_others, threshold)]


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' sets of character 5-grams, after `normalise`; 0 to 1."""
    import numpy as np

    first, second = (np.unique(_shingles(normalise(text))) for text in (a, b))
    return _jaccard(first, second)


class _Joined(Sequence[str]):
    """Two sequences as one, without copying."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._parts = (first, second)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, at: Any) -> Any:
        first, second = self._parts
        return first[at] if at < len(first) else second[at - len(first)]

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part


def _twins(texts: Sequence[str], n_others: int, threshold: float) -> list[Twin]:
    """Rows from `n_others` on with one twin each: any earlier row, or, if `n_others` > 0, a row before `n_others`."""
    import numpy as np

    common = _common_shingles(texts)
    keys = np.empty((len(texts), BANDS), dtype=np.uint64)
    workspace = np.empty((BANDS * BAND_ROWS, CHUNK), dtype=np.uint32)  # reused: allocating costs more than filling
    digests = array("Q")
    bare = set()  # rows with no 5-gram left to compare
    for i, text in enumerate(texts):
        folded = normalise(text)
        digests.append(text_digest(folded))
        shingles = _without(_shingles(folded), common)
        keys[i] = _band_keys(shingles, workspace)
        if not len(shingles):
            bare.add(i)
    found: dict[int, Twin] = {}
    for row, twin in repeated_rows(digests):
        if row >= n_others and (not n_others or twin < n_others):
            found[row] = Twin(row, twin, 1.0)

    @lru_cache(maxsize=16)  # many rows are compared with the same first row
    def shingle_set(row: int) -> Hashes:
        return np.unique(_without(_shingles(normalise(texts[row])), common))

    for row, twin in _candidates(keys, n_others):
        if row not in found and row not in bare:
            measured = _jaccard(shingle_set(row), shingle_set(twin))
            if measured >= threshold:
                found[row] = Twin(row, twin, measured)
    return [found[row] for row in sorted(found)]


def _jaccard(a: Hashes, b: Hashes) -> float:
    """Similarity of two sorted sets; 0 if both are empty."""
    import numpy as np

    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def _common_shingles(texts: Sequence[str]) -> Hashes:
    """The shingles that occur in many rows, sorted; estimated from evenly spaced rows."""
    import numpy as np

    n = min(SAMPLE, len(texts))
    if n < COMMON_ROWS:
        return np.empty(0, dtype=np.uint32)
    # The start of a long text is enough.
    sets = [np.unique(_shingles(normalise(texts[i * len(texts) // n][:4000]))) for i in range(n)]
    shingles, counts = np.unique(np.concatenate(sets), return_counts=True)
    common: Hashes = shingles[counts >= max(COMMON_ROWS, COMMON_SHARE * n)]
    return common


def _without(shingles: Hashes, common: Hashes) -> Hashes:
    import numpy as np

    if not len(common):
        return shingles
    places = np.minimum(np.searchsorted(common, shingles), len(common) - 1)
    return shingles[common[places] != shingles]


def _shingles(text: str) -> Hashes:
    """Hashes of the character 5-grams in order, repeats included; a shorter text is one shingle."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = min(SHINGLE, len(codes))
    n = len(codes) - width + 1
    hashes = np.zeros(n, dtype=np.uint32)
    for i in range(width):  # a polynomial with an odd base, modulo 2^32
        hashes *= np.uint32(0x01000193)
        hashes += codes[i : i + n]
    # The polynomial gives similar 5-grams similar hashes; mix them (MurmurHash3's finaliser, by A. Appleby).
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes ^= hashes >> np.uint32(shift)
        hashes *= np.uint32(factor)
    return hashes ^ (hashes >> np.uint32(16))


@cache
def _permutations() -> tuple[Hashes, Hashes, Keys]:
    """Odd factors and offsets, each pair a bijection of 32-bit numbers and so a permutation of all shingles, and the
    weights that combine a band's values into one key."""
    import numpy as np

    rng = np.random.default_rng(0)
    draws = rng.integers(0, 2**32, (2, BANDS * BAND_ROWS, 1), dtype=np.uint32)
    return draws[0] | np.uint32(1), draws[1], rng.integers(0, 2**64, BAND_ROWS, dtype=np.uint64) | np.uint64(1)


def _band_keys(shingles: Hashes, workspace: Hashes) -> Keys:
    """One key per band; two texts share a key if all MinHash values of the band agree."""
    import numpy as np

    factors, offsets, weights = _permutations()
    least = np.full(BANDS * BAND_ROWS, 2**32 - 1, dtype=np.uint32)
    for start in range(0, len(shingles), CHUNK):
        chunk = shingles[start : start + CHUNK]
        permuted = np.multiply(factors, chunk, out=workspace[:, : len(chunk)])
        permuted += offsets
        np.minimum(least, permuted.min(axis=1), out=least)
    keys: Keys = (least.reshape(BANDS, BAND_ROWS).astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return keys


def _candidates(keys: Keys, n_others: int) -> Iterator[tuple[int, int]]:
    """(row, earlier row) that share keys, a row's likeliest pair first. Each row and band gives at most two: the first
    row with the key and the last one before this row. All pairs would be quadratic in thousands of similar rows."""
    import numpy as np

    places = np.arange(len(keys))
    pairs = np.empty((0, 2), dtype=np.int64)
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        values = keys[order, band]
        starts = np.maximum.accumulate(np.where(np.append(True, values[1:] != values[:-1])[: len(keys)], places, 0))
        allowed = order < n_others if n_others else np.ones(len(keys), dtype=bool)
        before = np.maximum.accumulate(np.where(allowed, places, -1))
        before = np.append(-1, before[:-1])[: len(keys)]  # the last allowed place before each
        asked = (order >= n_others) & (before >= starts)
        new = [np.stack([order[asked], order[place[asked]]], axis=1) for place in (starts, before)]
        pairs = np.unique(np.concatenate([pairs, *new]), axis=0)
    shared = np.concatenate(
        [(keys[part[:, 0]] == keys[part[:, 1]]).sum(axis=1) for part in np.array_split(pairs, len(pairs) // 10_000 + 1)]
    )
    pairs, shared = pairs[shared >= BANDS_SHARED], shared[shared >= BANDS_SHARED]
    for row, twin in pairs[np.lexsort((-shared, pairs[:, 0]))]:
        yield int(row), int(twin)
