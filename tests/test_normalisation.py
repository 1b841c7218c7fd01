import pytest
import torch

from policy.errors import ModelError
from reward.normalisation import RewardNormalisation, from_demonstrations, from_reference_samples

RAW = torch.tensor([2.0, -1.0, 0.5, 7.0])


def test_demonstrations_score_zero_on_average_and_keep_their_distances() -> None:
    scores = from_demonstrations(RAW)(RAW)
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores.diff(), RAW.diff())


def test_reference_samples_get_the_mean_and_the_spread_asked_for() -> None:
    scores = from_reference_samples(RAW, target_mean=3.0, target_std=2.0)(RAW)
    assert scores.mean().item() == pytest.approx(3)
    assert scores.std(correction=0).item() == pytest.approx(2)


def test_without_calibration_rewards_stay_as_they_are() -> None:
    assert torch.equal(RewardNormalisation()(RAW), RAW)


def test_equal_samples_have_no_spread_to_match() -> None:
    assert from_demonstrations([0.1] * 3).bias == pytest.approx(-0.1)
    with pytest.raises(ModelError, match="all 3 reference samples"):
        from_reference_samples([0.1] * 3)


@pytest.mark.parametrize("raw, complaint", [([], "there are no rewards"), ([1.0, float("nan")], "1 of 2 rewards")])
def test_no_rewards_or_a_broken_one_are_refused(raw: list[float], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        from_demonstrations(raw)
