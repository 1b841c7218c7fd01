from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from data_schema import ChainOfThought, DataError, Demonstration, FewShot, Message, Records
from data_schema.few_shot import Exchange, add_exemplars, add_rationales, few_shot_prompt, reword


def asked(number: int, prompt: str, answer: str = "", **meta: Any) -> Demonstration:
    turns = (Message("user", prompt), Message("assistant", answer or f"a{number}"))
    return Demonstration(str(number), "team", turns, meta=meta)


def records_of(*records: Demonstration) -> Records[Demonstration]:
    return Records.of(Demonstration, records)


def sums(n_rows: int, task: str = "sum") -> list[Demonstration]:
    return [asked(i, f"{task} {i}", f"is {task} {i}", task=task) for i in range(n_rows)]


def prompt_of(record: Demonstration) -> str:
    return record.messages[-2].content


# ---- the prompt


def test_flans_prompt_is_exemplars_and_then_the_question() -> None:
    shown = [Exchange("", "1+1", "2"), Exchange("", "2+2", "4")]
    assert few_shot_prompt(Exchange("", "3+3", "6"), shown, FewShot()) == "1+1\n\n2\n\n\n2+2\n\n4\n\n\n3+3"


def test_prefixes_mark_questions_and_answers_and_invite_the_last_one() -> None:
    style = FewShot(question_prefix="Q: ", answer_prefix="A: ", delimiter="\n", separator="\n--\n")
    assert (
        few_shot_prompt(Exchange("", "3+3", "6"), [Exchange("", "1+1", "2")], style) == "Q: 1+1\nA: 2\n--\nQ: 3+3\nA:"
    )


def test_instructgpts_prompt_says_the_instruction_once() -> None:
    shown = [Exchange("Add.", "1 1", "2"), Exchange("Add.", "2 2", "4")]
    expected = "Add.\n\n\n1 1\n\n2\n\n\n2 2\n\n4\n\n\n3 3"
    assert few_shot_prompt(Exchange("Add.", "3 3", "6"), shown, FewShot()) == expected


# ---- exemplars


def test_exemplars_are_others_of_the_same_task_with_their_answers() -> None:
    data = [*sums(6), *sums(6, "difference")]
    made, changed = add_exemplars(
        records_of(*[replace(r, id=str(i)) for i, r in enumerate(data)]), FewShot(3, 1.0), seed=0
    )
    assert changed == len(made) == 12
    for record, before in zip(made, data, strict=True):
        *blocks, question = prompt_of(record).split("\n\n\n")
        assert question == prompt_of(before) and record.messages[-1] == before.messages[-1]
        assert len(set(blocks)) == 3 == len(record.meta["exemplars"])
        for block in blocks:
            query, _, answer = block.partition("\n\n")
            assert answer == f"is {query}" and query.split()[0] == before.meta["task"] and query != question


def test_the_share_is_a_chance_and_the_rest_stay_as_they_are() -> None:
    """600 draws at 0.3: 180 with a deviation of 11."""
    data = sums(600)
    made, changed = add_exemplars(records_of(*data), FewShot(2, 0.3), seed=0)
    kept = [record for record in made if "exemplars" not in record.meta]
    assert abs(changed - 180) < 45 and len(kept) == 600 - changed
    assert all(record == data[int(record.id)] for record in kept)


def test_every_other_row_is_as_likely_an_exemplar() -> None:
    """900 exemplars over 10 rows: 90 each with a deviation of 9."""
    drawn: Counter[str] = Counter()
    for seed in range(30):
        for record in add_exemplars(records_of(*sums(10)), FewShot(3, 1.0), seed).records:
            drawn.update(record.meta["exemplars"])
    assert sum(drawn.values()) == 900 and all(abs(count - 90) < 45 for count in drawn.values())


def test_the_same_seed_gives_the_same_prompts() -> None:
    def prompts(seed: int) -> list[str]:
        return [prompt_of(record) for record in add_exemplars(records_of(*sums(20)), FewShot(), seed).records]

    assert prompts(1) == prompts(1) != prompts(2)


def test_the_question_never_stands_among_its_exemplars_even_where_data_repeat() -> None:
    data = [asked(i, f"Sum  {i % 3}", "x", task="sum") for i in range(30)] + [asked(99, "sum 0", "x", task="sum")]
    for record in add_exemplars(records_of(*data), FewShot(5, 1.0), seed=0).records:
        *blocks, question = prompt_of(record).split("\n\n\n")
        queries = [" ".join(block.partition("\n\n")[0].lower().split()) for block in blocks]
        assert len(queries) == len(set(queries)) == 2
        assert " ".join(question.lower().split()) not in queries


def test_dialogues_lonely_tasks_and_other_system_messages_are_left_alone() -> None:
    turns = [Message("user", "a"), Message("assistant", "b")]
    dialogue = Demonstration("d", "team", (*turns, *turns))
    system = Demonstration("s", "team", (Message("system", "be brief"), *turns))
    data = [dialogue, system, asked(1, "alone", task="one"), *sums(3)]
    made = list(add_exemplars(records_of(*data), FewShot(1, 1.0), seed=0).records)
    assert made[:3] == data[:3] and all("exemplars" in record.meta for record in made[3:])


def test_a_system_message_stays_first_and_its_like_are_exemplars() -> None:
    lead = Message("system", "be brief")
    data = [
        Demonstration(str(i), "team", (lead, Message("user", f"q{i}"), Message("assistant", f"a{i}"))) for i in range(2)
    ]
    (first, _) = add_exemplars(records_of(*data), FewShot(1, 1.0), seed=0).records
    assert first.messages == (lead, Message("user", "q1\n\na1\n\n\nq0"), Message("assistant", "a0"))


def test_instructgpts_resampling_draws_a_query_several_times_each_with_others() -> None:
    data = [asked(i, f"Say the colour.\n\nthing {i}") for i in range(12)]
    others = [asked(50 + i, f"Count the words.\n\ntext {i}") for i in range(2)]
    style = FewShot(k=3, share=1.0, pattern="instruction", draws=4)
    made, changed = add_exemplars(records_of(*data, *others, asked(90, "Write a poem.")), style, seed=0)
    assert changed == 4 * 14 and len(made) == changed + 1
    first = [prompt_of(record) for record in made][:4]
    assert len(set(first)) == 4
    for prompt in first:
        instruction, *blocks, query = prompt.split("\n\n\n")
        assert (instruction, query, len(blocks)) == ("Say the colour.", "thing 0", 3)
        assert all(block.startswith("thing ") and "\n\na" in block for block in blocks)
    assert len({record.id for record in made}) == len(made)


def test_an_instruction_named_in_meta_may_have_several_paragraphs() -> None:
    text = "Say the colour.\n\nOne word."
    data = [asked(i, f"{text}\n\nthing {i}", instruction=text) for i in range(2)]
    first = add_exemplars(records_of(*data), FewShot(1, 1.0, "instruction"), seed=0).records[0]
    assert prompt_of(first) == f"{text}\n\n\nthing 1\n\na1\n\n\nthing 0"


# ---- reasoning


def reasoned(number: int, answer: str = "4.", rationale: Any = "Two and two.", **meta: Any) -> Demonstration:
    return asked(number, f"2+2 ({number})", answer, rationale=rationale, **meta)


def test_a_rationale_is_asked_for_and_written_before_the_answer() -> None:
    made, changed = add_rationales(records_of(reasoned(0), asked(1, "hi", "ho")), ChainOfThought(), seed=0)
    assert changed == 1 and made[1] == asked(1, "hi", "ho")
    assert [message.content for message in made[0].messages] == [
        "2+2 (0)\n\nLet's think step by step.",
        "Two and two. The answer is 4.",
    ]


def test_the_words_around_a_rationale_can_be_chosen() -> None:
    style = ChainOfThought(prompt="{prompt} Why?", answer="{{{rationale}}} => {answer}")
    (made,) = add_rationales(records_of(reasoned(0)), style, seed=0).records
    assert [message.content for message in made.messages] == ["2+2 (0) Why?", "{Two and two.} => 4."]


def test_an_answer_that_has_its_rationale_already_does_not_get_it_twice() -> None:
    told = "Two and two. So 4."
    made, changed = add_rationales(
        records_of(reasoned(0, told, target="4"), reasoned(1, told)), ChainOfThought(answer="{rationale} {answer}"), 0
    )
    assert changed == 1
    assert [record.messages[-1].content for record in made] == ["Two and two. 4", told]


def test_exemplars_reason_where_the_question_asks_for_it_and_only_there() -> None:
    made = reword(records_of(*[reasoned(i) for i in range(60)]), ChainOfThought(share=0.5), FewShot(2, 1.0), seed=0)
    shares = Counter(prompt_of(record).count("Let's think") for record in made)
    assert shares.keys() == {0, 3} and abs(shares[0] - 30) < 16
    assert all((prompt_of(r).count("Two and two.") == 2) == ("Two and two." in r.messages[-1].content) for r in made)


def test_a_setting_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="chain_of_thought changed no demonstration: none has a text 'rationale'"):
        reword(records_of(asked(0, "hi")), ChainOfThought(), None, 0)
    with pytest.raises(DataError, match="few_shot changed no demonstration: none shares its instruction"):
        reword(records_of(asked(0, "hi"), asked(1, "ho")), None, FewShot(pattern="instruction", share=1.0), 0)


def test_without_settings_nothing_is_copied() -> None:
    records = records_of(*sums(2))
    assert reword(records, None, None, 0) is records


@pytest.mark.parametrize("rationale", [["two", "lines"], 3, "  "])
def test_a_rationale_that_is_no_text_names_its_row(rationale: Any) -> None:
    with pytest.raises(DataError, match=r"team: row '0': 'meta\.rationale' .*fix or delete it"):
        add_rationales(records_of(reasoned(0, rationale=rationale)), ChainOfThought(), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewShot(k=0), "few_shot.k must be at least 1, found 0"),
        (lambda: FewShot(share=0), "few_shot.share must be above 0 and at most 1, found 0"),
        (lambda: FewShot(pattern="t0"), "few_shot.pattern must be flan or instruction, found 't0'"),
        (lambda: ChainOfThought(share=2), "chain_of_thought.share must be above 0"),
        (lambda: ChainOfThought(answer="{answer}"), "chain_of_thought.answer must contain {rationale} and {answer}"),
        (lambda: ChainOfThought(prompt="{prompt"), r"chain_of_thought.prompt must contain \{prompt\}"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
