from __future__ import annotations

from array import array

import pytest

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record, Records
from stages.data_checks.lengths import Lengths, add_words, histogram, length_findings, quantiles

QUESTION = Message("user", "why is it so")
DEMONSTRATION = Demonstration("d", "s", (QUESTION, Message("assistant", "because, yes")))
COMPARISON = Comparison("c", "s", (QUESTION,), ("no", "perhaps it is so"), (1, 2))


@pytest.mark.parametrize(
    ("record", "whole", "answers"),
    [
        (DEMONSTRATION, 4 + 3, [3]),  # the comma counts
        (COMPARISON, 4 + 4, [1, 4]),
        (Prompt("p", "s", (QUESTION,)), 4, []),
        (Document("t", "s", "今天 rain in 公园."), 7, []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_words_and_marks_are_counted_and_each_han_character(record: Record, whole: int, answers: list[int]) -> None:
    lengths = Lengths("words", array("q"), array("q"))
    add_words(record, lengths)
    assert (list(lengths.whole), list(lengths.answers)) == ([whole], answers)


def test_rows_over_the_limit_are_a_warning_and_if_it_is_all_of_them_an_error() -> None:
    records = Records.of(Prompt, [Prompt(f"p{i}", "s", (QUESTION,)) for i in range(2)])
    lengths = Lengths("tokens", array("q", [4, 9]), array("q"))
    assert length_findings(records, lengths, None) == length_findings(records, lengths, 9) == []
    [some] = length_findings(records, lengths, 4)
    [all_of_them] = length_findings(records, lengths, 3)
    assert (some.severity, some.count, all_of_them.severity) == ("warning", 1, "error")
    assert "longer than 4 tokens" in some.text and "the longest has 9" in some.text


def test_bars_double_in_width_and_hold_every_row_once() -> None:
    assert histogram([0, 1, 2, 3, 4, 9, 9]) == [(0, 0, 1), (1, 1, 1), (2, 3, 2), (4, 7, 1), (8, 15, 2)]
    assert histogram([]) == []


def test_quantiles_of_1_to_101_are_plain_to_see() -> None:
    assert quantiles(range(1, 102)) == {"min": 1, "p50": 51, "p95": 96, "max": 101, "mean": 51.0, "total": 5151}
    assert quantiles([]) == {}
