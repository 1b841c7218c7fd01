import pytest
import torch

from policy.maths.ema import update_ema


def test_the_average_is_made_in_place_and_the_weights_stay_as_they_are() -> None:
    average, weight = torch.zeros(2), torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    update_ema([average], [weight], decay=0.75)
    assert average.tolist() == [0.25, 0.5]
    assert weight.tolist() == [1.0, 2.0]
    assert not average.requires_grad


def test_a_float32_average_of_bfloat16_weights_keeps_small_steps() -> None:
    average, weight = torch.ones(1), torch.tensor([1.0078125], dtype=torch.bfloat16)
    update_ema([average], [weight], decay=0.992)
    assert average.item() == pytest.approx(1 + 0.008 * 0.0078125, rel=1e-7)


@pytest.mark.parametrize("weights", [[], [torch.zeros(3)]])
def test_lists_that_do_not_match_are_refused(weights: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError):
        update_ema([torch.zeros(2)], weights, decay=0.5)
