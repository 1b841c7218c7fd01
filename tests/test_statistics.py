import math

import pytest

from stages.statistics import mean_with_standard_error, win_rate


def test_swapping_the_sides_mirrors_the_win_rate_and_its_intervals() -> None:
    ours, theirs = win_rate(12, 5, 3), win_rate(3, 5, 12)
    assert ours.rate + theirs.rate == pytest.approx(1)
    assert ours.standard_error == pytest.approx(theirs.standard_error)
    for a, b in [(ours.normal, theirs.normal), (ours.wilson, theirs.wilson)]:
        assert a.low + b.high == pytest.approx(1)
        assert a.low < ours.rate < a.high


def test_when_every_comparison_is_won_the_wilson_interval_keeps_a_width() -> None:
    won = win_rate(20, 0, 0)
    assert won.standard_error == 0 and won.normal == (1, 1)
    assert won.wilson.low == pytest.approx(20 / (20 + 1.959963984540054**2)) and won.wilson.high == pytest.approx(1)


def test_mean_and_standard_error_of_four_numbers() -> None:
    got = mean_with_standard_error([1.0, 2.0, 3.0, 6.0])
    assert (got.mean, got.n) == (3, 4)
    assert got.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))


def test_one_observation_has_an_unknown_error() -> None:
    assert math.isnan(win_rate(1, 0, 0).standard_error)
    assert math.isnan(mean_with_standard_error([2.0]).standard_error)


@pytest.mark.parametrize("counts", [(0, 0, 0), (3, -1, 2)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="give at least one in all, and none negative"):
        win_rate(*counts)


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one value"):
        mean_with_standard_error([])
