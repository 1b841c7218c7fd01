from __future__ import annotations

import math

import numpy as np
import pytest

from reward.calibration import (
    calibrated_error,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_curve,
)


def simulated(n: int, temperature: float, spread: float = 2.0, seed: int = 0) -> np.ndarray:
    """Differences seen from the preferred answer, where the preference is drawn from sigmoid(difference / T)."""
    rng = np.random.default_rng(seed)
    difference = spread * rng.standard_normal(n)
    preferred = rng.random(n) < 1 / (1 + np.exp(-difference / temperature))
    return np.where(preferred, difference, -difference)


def test_a_calibrated_set_has_bins_on_the_diagonal_and_an_error_of_chance_size() -> None:
    differences = simulated(40_000, temperature=1.0)
    curve = reliability_curve(differences)
    assert sum(row.n for row in curve) == 40_000
    for row in curve:
        assert abs(row.accuracy - row.confidence) < 4 * math.sqrt(0.25 / row.n)
    error = expected_calibration_error(curve)
    assert error < 0.01
    assert error == pytest.approx(calibrated_error(differences), abs=0.004)


def test_the_error_is_worked_out_by_hand_on_four_pairs() -> None:
    """sigmoid(log 3) = 0.75 three times, twice right; sigmoid(log 19) = 0.95 once, wrong."""
    differences = [math.log(3), math.log(3), -math.log(3), -math.log(19)]
    low, high = reliability_curve(differences, n_bins=5)
    assert (low.confidence, low.accuracy, low.n) == (pytest.approx(0.75), pytest.approx(2 / 3), 3)
    assert (high.confidence, high.accuracy, high.n) == (pytest.approx(0.95), 0.0, 1)
    assert expected_calibration_error([low, high]) == pytest.approx((3 * (0.75 - 2 / 3) + 0.95) / 4)


def test_the_error_that_chance_makes_is_that_of_one_coin() -> None:
    """n pairs of confidence 1/2 in one bin: the mean of |heads / n - 1/2| is sqrt(1 / (2 pi n))."""
    assert calibrated_error([0.0] * 400, draws=4000) == pytest.approx(math.sqrt(1 / (2 * math.pi * 400)), rel=0.05)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_simulated_preferences_is_found_again(temperature: float) -> None:
    fitted = fit_temperature(simulated(40_000, temperature))
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)


def test_the_fitted_temperature_has_the_lowest_loss_of_its_neighbours() -> None:
    differences = simulated(500, temperature=2.0)
    fitted = fit_temperature(differences)
    assert fitted.temperature is not None
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert log_loss(differences, factor * fitted.temperature) > fitted.log_loss


def test_the_temperature_of_one_wrong_pair_in_four_of_equal_size_is_in_closed_form() -> None:
    """Three at d and one at -d: sigmoid(d / T) = 3/4, so T = d / log 3."""
    assert fit_temperature([2.0, 2.0, 2.0, -2.0]).temperature == pytest.approx(2 / math.log(3))


def test_scores_that_say_nothing_or_are_never_wrong_have_no_temperature() -> None:
    assert fit_temperature([1.0, -1.0]) == (None, pytest.approx(math.log(2)))
    assert fit_temperature([1.0, -3.0]) == (None, pytest.approx(math.log(2)))
    assert fit_temperature([1.0, 2.0]) == (None, 0.0)
    assert fit_temperature([0.0, 0.0, 5.0, 5.0]) == (None, pytest.approx(math.log(2) / 2))


def test_equal_scores_are_half_right_at_confidence_one_half() -> None:
    (only,) = reliability_curve([0.0, 0.0])
    assert only == (0.5, 0.5, 2)


def test_large_differences_overflow_nothing() -> None:
    assert log_loss([1e4, -1e4]) == pytest.approx(5e3)
    assert [row.confidence for row in reliability_curve([1e4, -1e4])] == [1.0]


@pytest.mark.parametrize("bad", [[], [[1.0]], [math.nan], [math.inf]])
def test_what_is_no_list_of_numbers_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="one or more finite numbers"):
        fit_temperature(bad)


@pytest.mark.parametrize("size", [1e-300, 1e-8, 1e-3, 1.0, 1e4, 1e20, 1e300])
def test_the_temperature_follows_the_scale_of_the_scores(size: float) -> None:
    """Two at d and one at -d: sigmoid(d / T) = 2/3, so T = d / log 2, whatever d is."""
    fitted = fit_temperature([size, size, -size])
    assert fitted.temperature == pytest.approx(size / math.log(2), rel=1e-9)
    assert fitted.log_loss == pytest.approx(-2 / 3 * math.log(2 / 3) - math.log(1 / 3) / 3)


def test_one_large_difference_does_not_hide_the_small_ones() -> None:
    assert fit_temperature([1e-8, 1e-8, -1e-8, 1e20]).temperature == pytest.approx(1e-8 / math.log(2))
