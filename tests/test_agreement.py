from __future__ import annotations

import numpy as np
import pytest

from reward.agreement import agreement, fleiss_kappa, krippendorff_alpha, raw_agreement

# Krippendorff's four observers of twelve units ("Computing Krippendorff's alpha-reliability", section C to E).
OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
# Fleiss' kind of table: how many of 14 raters put each of ten subjects into each of five categories; kappa is 0.210.
TABLE = """0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"""


def units(*observers: str) -> list[list[int]]:
    return [[int(mark) for mark in column if mark != "."] for column in zip(*observers, strict=True)]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorff_s_own_example(level: str, alpha: float) -> None:
    found = krippendorff_alpha(units(*OBSERVERS), level)
    assert found == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_raters_and_two_categories_is_worked_out_by_hand() -> None:
    """Ten items, four differ; 14 zeros and 6 ones: 1 - 19 * (4 / (14 * 6)) = 2 / 21 (coincidences 4 each way)."""
    first, second = "0100000010", "1110010000"
    assert krippendorff_alpha(units(first, second)) == pytest.approx(1 - (20 - 1) * 4 / (14 * 6))
    assert raw_agreement(units(first, second)) == 0.6


def test_kappa_of_a_published_table() -> None:
    rows = [[int(cell) for cell in row.split()] for row in TABLE.split("/")]
    ratings = [[category for category, n in enumerate(row) for _ in range(n)] for row in rows]
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


def test_kappa_of_three_raters_is_worked_out_by_hand() -> None:
    """Items aaa, aab: agreement (1 + 1/3) / 2 = 2/3; a is 5/6, so chance is 26/36; kappa is -1/5."""
    assert fleiss_kappa([[0, 0, 0], [0, 0, 1]]) == pytest.approx((2 / 3 - 26 / 36) / (1 - 26 / 36))
    assert raw_agreement([[0, 0, 0], [0, 0, 1]]) == pytest.approx(4 / 6)


def test_full_agreement_is_1_and_random_ratings_are_near_0() -> None:
    perfect = [[value, value, value] for value in (0, 1, 2, 1)]
    assert raw_agreement(perfect) == krippendorff_alpha(perfect) == fleiss_kappa(perfect) == 1
    drawn = np.random.default_rng(0).integers(0, 3, (4000, 3)).tolist()
    assert abs(krippendorff_alpha(drawn) or 1) < 0.02
    assert abs(fleiss_kappa(drawn) or 1) < 0.02
    assert raw_agreement(drawn) == pytest.approx(1 / 3, abs=0.02)


def test_single_ratings_change_no_alpha() -> None:
    ratings = units("0100000010", "1110010000")
    assert krippendorff_alpha([*ratings, [1], [0], [2]]) == krippendorff_alpha(ratings)


def test_what_cannot_be_told_is_none() -> None:
    assert raw_agreement([[1], [0]]) is None and krippendorff_alpha([[1], [0]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None and fleiss_kappa([[1, 1], [1, 1]]) is None
    assert fleiss_kappa([[0, 1], [0, 1, 1]]) is None and fleiss_kappa([]) is None


def test_only_items_with_several_votes_count() -> None:
    told = agreement([{"ann": 1.0, "bob": 1.0}, {"ann": -1.0, "cid": 1.0}, {"ann": 1.0}])
    assert (told["items"], told["labelers"], told["raw_agreement"]) == (2, 3, 0.5)
