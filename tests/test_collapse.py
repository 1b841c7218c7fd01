"""Measures of collapse against small answers whose numbers are worked out by hand."""

from __future__ import annotations

import pytest

from stages.evaluate.collapse import distinct_share, measure_collapse, repeated_ngrams, repetition, same_opening_share


def test_equal_answers_count_once() -> None:
    assert distinct_share([[1, 2], [1, 2], [1], [2, 1]]) == 3 / 4
    assert distinct_share([[], [], [], []]) == 1 / 4


def test_answers_begin_alike_if_their_first_four_tokens_are_the_same() -> None:
    answers = [[1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 9, 9], [1, 2, 3, 5, 4]]
    assert same_opening_share(answers) == 3 / 4


def test_a_short_answer_begins_like_those_that_are_the_same_throughout() -> None:
    assert same_opening_share([[1, 2], [1, 2], [1, 2, 3], [7, 8, 9, 1]]) == 2 / 4
    assert same_opening_share([[], [], [], [1]]) == 3 / 4


def test_an_8_gram_is_repeated_if_another_answer_has_it_and_each_place_counts() -> None:
    a = list(range(9))  # two 8-grams: 0..7 and 1..8
    b = [50, *range(8)]  # two: 50,0..6 and 0..7, which is a's first
    assert repeated_ngrams([a, b]) == 2 / 4
    twice_in_one = [5] * 9  # two equal 8-grams, but in one answer
    assert repeated_ngrams([twice_in_one, a]) == 0.0
    assert repeated_ngrams([twice_in_one, twice_in_one]) == 1.0
    assert repeated_ngrams([[1, 2, 3], [1, 2, 3]]) == 0.0  # no answer has eight tokens


def test_repetition_is_the_mean_share_of_3_grams_that_an_answer_has_had_before() -> None:
    loop = [1, 2, 3, 1, 2, 3, 1]  # 123 231 312 123 231: two of five
    assert repetition([loop]) == pytest.approx(2 / 5)
    assert repetition([loop, [1, 2, 3, 4], [1]]) == pytest.approx(2 / 5 / 3)


def test_a_policy_that_says_one_thing_shows_in_every_measure_but_its_own_repetition() -> None:
    collapsed = measure_collapse([list(range(10))] * 4)
    assert collapsed == {"distinct_share": 1 / 4, "same_opening_share": 1.0, "repeated_8grams": 1.0, "repetition": 0.0}
