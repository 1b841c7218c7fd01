from __future__ import annotations

import pytest

from data_schema import Comparison, Demonstration, Message, Record
from stages.data_checks.checks import RowChecks, script_of
from stages.data_checks.one_answer import one_answer_findings


def demonstration(question: str, answer: str, name: str = "d1") -> Demonstration:
    return Demonstration(name, "s", (Message("user", question), Message("assistant", answer)))


def found(*records: Record, special: tuple[str, ...] = ()) -> dict[str, tuple[str, int | None]]:
    checks = RowChecks(special)
    for record in records:
        checks.look_at(record)
    return {finding.check: (finding.severity, finding.count) for finding in checks.findings()}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Wrens are small.", "Latin"),
        ("Où est l'été?", "Latin"),
        ("今天天气很好我们去公园吧。", "Han"),
        ("今日は天気がいいですね", "Kana"),
        ("오늘 날씨가 좋네요", "Hangul"),
        ("Сегодня хорошая погода", "Cyrillic"),
        ("الطقس جميل اليوم", "Arabic"),
        ("ሰላም ለዓለም", "other"),
        ("12 + 30 = 42 €", "none"),
        ("请翻译 hello 这个词为中文的意思", "Han"),
    ],
)
def test_a_text_s_script_is_that_of_most_of_its_letters(text: str, script: str) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("question", "answer", "check"),
    [
        ("### Instruction: name a bird\n\n### Response:", "a wren", "template_in_text"),
        ("[INST] name a bird [/INST]", "a wren", "template_in_text"),
        ("<|im_start|>user\nname a bird", "a wren", "template_in_text"),
        ("\n\nHuman: name a bird", "a wren", "template_in_text"),
        ("name a bird", "a wren</s>", "end_mark_in_text"),
        ("name a bird", "a wr\ufffdn", "broken_characters"),
        ("name a bird", "a wren", None),
        ("is a Human: or a bird better", "an Assistant: is", None),
    ],
)
def test_traps_in_the_text_are_counted(question: str, answer: str, check: str | None) -> None:
    assert found(demonstration(question, answer)) == ({check: ("warning", 1)} if check else {})


def test_the_tokenizers_own_end_mark_is_not_another_models() -> None:
    row = demonstration("what does <pad> mean", "it fills</s>")
    assert found(row, special=("<pad>", "</s>")) == {}
    assert found(row) == {"end_mark_in_text": ("warning", 1)}


def test_what_people_write_now_and_then_is_a_note() -> None:
    rows = [demonstration(f"name bird {i}", "a wren") for i in range(200)]
    assert found(*rows, demonstration("[INST] hello", "yes")) == {"template_in_text": ("note", 1)}


@pytest.mark.parametrize(("n_longer_wins", "told"), [(40, True), (20, False)])
def test_a_set_where_the_longer_response_wins_is_told(n_longer_wins: int, told: bool) -> None:
    long, short = "a long answer", "short"
    prompt = (Message("user", "why"),)
    rows = [Comparison(f"c{i}", "s", prompt, (long, short), (1, 2) if i < n_longer_wins else (2, 1)) for i in range(40)]
    ties = [Comparison(f"t{i}", "s", prompt, (long, short), (1, 1)) for i in range(40)]
    assert ("length_bias" in found(*rows, *ties)) == told


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["no"] * 8, [8]),
        (["no", " no\n"] * 4, [8]),  # white space around an answer is not learned
        (["no"] * 7, []),  # seven rows can be alike by chance
        (["no"] * 8 + ["yes"], []),
        (["no", "yes"] + ["no"] * 8, []),
    ],
)
def test_a_task_with_one_answer_is_told(answers: list[str], told: list[int]) -> None:
    rows = [demonstration(f"is review {i} positive", answer, f"films:{i}") for i, answer in enumerate(answers)]
    others = [demonstration(f"what is {i} + {i}", str(2 * i), f"sums:{i}") for i in range(10)]
    findings = one_answer_findings([*rows, *others])
    assert [finding.count for finding in findings] == told
    assert all(finding.examples == ("films",) and "1 of 2 tasks" in finding.text for finding in findings)
