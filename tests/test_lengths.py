from __future__ import annotations

from array import array

import pytest
from tiny_models import byte_tokenizer

from data_schema import Comparison, Demonstration, Document, Message, Prompt, Record, Records
from policy.encoding import set_template
from stages.data_checks.lengths import Lengths, add_words, histogram, length_findings, quantiles, token_lengths

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


def test_tokens_are_counted_as_they_are_spelled_with_template_and_eos() -> None:
    tokenizer = byte_tokenizer()
    set_template(tokenizer, "chatml")
    n = {text: len(tokenizer(text)["input_ids"]) for text in ("<|im_start|>user\nwhy is it so<|im_end|>", "no")}
    opening = len(tokenizer("\n<|im_start|>assistant\n")["input_ids"])
    prompt = n["<|im_start|>user\nwhy is it so<|im_end|>"] + opening
    lengths, found = token_lengths([COMPARISON], Comparison, tokenizer)
    longer = len(tokenizer("perhaps it is so")["input_ids"])
    assert list(lengths.answers) == [n["no"] + 1, longer + 1]
    # Prompt and opening are one piece of text, in which tokens may join.
    assert prompt - 3 <= lengths.whole[0] - longer - 1 <= prompt
    assert found == []


def test_rows_that_a_template_refuses_or_that_say_nothing_are_found() -> None:
    tokenizer = byte_tokenizer(
        chat_template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + ('' if m['role'] == 'user' else eos_token) }}{% endfor %}"
    )
    empty = Demonstration("e", "s", (QUESTION, Message("assistant", "<|im_end|>")))
    system = Demonstration("y", "s", (Message("system", "be kind"), QUESTION, Message("assistant", "yes")))
    lengths, found = token_lengths([DEMONSTRATION, empty, system, system], Demonstration, tokenizer)
    assert len(lengths.whole) == 2
    told = {finding.check: (finding.severity, finding.count, finding.examples) for finding in found}
    assert told == {"empty_target": ("warning", 1, ("e",)), "template_refuses": ("error", 2, ("y", "y"))}


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
