import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import ModelError
from policy.maths.masks import check_mask, last_token_index, mask_from_lengths, position_ids, truncate_after_token

EOS, PAD = 3, 9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(0, 5))
def test_truncation_keeps_everything_up_to_the_first_stop_and_nothing_after(rows: list[list[int]], first: int) -> None:
    cut = truncate_after_token(torch.tensor(rows), [EOS], PAD, first)
    for row, got, length, found in zip(rows, *(t.tolist() for t in cut), strict=True):
        stops = [i for i, token in enumerate(row) if token == EOS and i >= first]
        assert found == bool(stops)
        assert length == (stops[0] + 1 if stops else 6)
        assert got == row[:length] + [PAD] * (6 - length)


def test_the_end_token_stays_real_when_padding_is_the_same_token() -> None:
    cut = truncate_after_token(torch.tensor([[5, EOS, 7], [5, 6, 7]]), [EOS], pad_id=EOS)
    assert cut.responses.tolist() == [[5, EOS, EOS], [5, 6, 7]]
    assert mask_from_lengths(cut.lengths, 3).tolist() == [[True, True, False], [True, True, True]]


def test_a_mask_has_as_many_true_as_its_length_and_they_come_first() -> None:
    assert mask_from_lengths(torch.tensor([0, 2, 3, 7]), 3).tolist() == [
        [False, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]


def test_the_last_token_is_found_whichever_side_is_padded() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    assert last_token_index(mask).tolist() == [1, 3, 1]


def test_a_row_without_a_real_token_has_no_last_one() -> None:
    with pytest.raises(ModelError, match=r"rows \[1\] of 2 have no real token"):
        last_token_index(torch.tensor([[True, False], [False, False]]))


def test_left_padding_does_not_move_the_positions_of_a_text() -> None:
    for padding in range(4):
        mask = torch.tensor([0] * padding + [1, 1, 1])
        assert position_ids(mask)[padding:].tolist() == [0, 1, 2]


@pytest.mark.parametrize("mask", [torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 3, dtype=torch.int64)])
def test_a_mask_of_another_shape_or_type_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be torch.bool \(2, 3\)"):
        check_mask(torch.zeros(2, 3), mask)
