import pytest

from policy.maths.schedules import cosine_to_fraction, linear_to_zero, warmup_from_fraction


def test_cosine_falls_from_one_through_the_middle_to_its_floor_and_stays() -> None:
    assert [cosine_to_fraction(step, 10, floor=0.2) for step in (0, 5, 10, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])


def test_warmup_rises_in_equal_steps_and_then_stays_at_the_peak() -> None:
    assert [warmup_from_fraction(step, 4, start=0.2) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert warmup_from_fraction(0, 0) == 1


def test_linear_reaches_zero_and_does_not_go_below() -> None:
    assert [linear_to_zero(step, 2) for step in range(4)] == [1, 0.5, 0, 0]


@pytest.mark.parametrize("schedule", [cosine_to_fraction, linear_to_zero])
def test_a_schedule_over_no_steps_is_refused(schedule) -> None:
    with pytest.raises(ValueError, match="total=0 must be above 0"):
        schedule(0, 0)
