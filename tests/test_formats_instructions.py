"""Each published format of instruction data, by an invented row, becomes the conversations that it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import DataError, Demonstration, Document, Message, Prompt, Source, load
from data_schema.formats.dialogues import DIALOGUE_FORMATS
from data_schema.formats.instructions import INSTRUCTION_FORMATS
from data_schema.formats.table import FORMATS, recognise

BELOW = "Below is an instruction that describes a task"
PAIRED = f"{BELOW}, paired with an input that provides further context. Write a response that completes it.\n\n"
PLAIN = f"{BELOW}. Write a response that appropriately completes the request.\n\n"
FILLED = f"{PLAIN}### Instruction:\nName a bird.\n\n### Response:\n"
FILLED_INPUT = f"{PAIRED}### Instruction:\nName it.\n\n### Input:\nIt sings.\n\n### Response:"
GUANACO = "### Human: Name a bird.### Assistant: A wren.### Human: And another?### Assistant:"


def said(*contents: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))


def sharegpt(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def message(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_id": text, "role": role, "text": text, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": message(
        "prompter",
        "Name a bird.",
        message("assistant", "Um.", rank=1),
        message(
            "assistant",
            "A wren.",
            message("prompter", "Another?", message("assistant", "A duck.")),
            message("prompter", "A red one?", message("assistant", "A robin.", rank=0), message("assistant", "No.")),
            message("prompter", "Thanks"),
            rank=0,
        ),
        message("assistant", "Best, but by a machine.", rank=-1, synthetic=True),
    ),
}
TASK = {
    "Definition": ["Reverse the word.", "Say it backwards."],
    "Positive Examples": [{"input": "ab", "output": "ba", "explanation": "Turned."}, {"input": "no", "output": ["on"]}],
    "Instances": [{"id": "i-1", "input": "cd", "output": ["dc", "d c"]}, {"id": "i-2", "input": "", "output": "x"}],
    "Categories": ["Words"],
}
SEVERAL = {"id": "s1", "instruction": "Rhyme.", "instances": [{"input": "cat", "output": "hat"}, {"output": "Oh."}]}
COT = {"input": "Is 7 odd?\\n- yes\\n- no", "target": "yes", "rationale": "7 = 2 * 3 + 1.\\nSo it is."}
P3 = {"inputs": [3, 4], "targets": [5], "inputs_pretokenized": "Sad?\n", "targets_pretokenized": "\nNo"}

# name: (row, the format it is recognised as or None, the format it is read as, the conversations of its demonstrations)
GOLDEN: dict[str, tuple[dict[str, Any], str, list[tuple[Message, ...]]]] = {
    "alpaca with a system message": (
        {"instruction": "Hi?", "output": "Ho.", "system": "Be kind."},
        "alpaca",
        [(Message("system", "Be kind."), *said("Hi?", "Ho."))],
    ),
    "alpaca's text alone": ({"text": FILLED + "A wren."}, "alpaca_text", [said("Name a bird.", "A wren.")]),
    "alpaca's text with input": (
        {"text": FILLED_INPUT + "A wren."}, "alpaca_text", [said("Name it.\n\nIt sings.", "A wren.")]
    ),
    "dolly": (
        {"instruction": "Who?", "context": "Ann did.", "response": "Ann.", "category": "closed_qa"},
        "dolly",
        [said("Who?\n\nAnn did.", "Ann.")],
    ),
    "dolly without context": ({"instruction": "Who?", "context": "", "response": "I."}, "dolly", [said("Who?", "I.")]),
    "gpteacher": ({"instruction": "Act.", "input": "<noinput>", "response": "Oh!"}, "gpteacher", [said("Act.", "Oh!")]),
    "dolly_hhrlhf": ({"prompt": FILLED, "response": "A wren."}, "prompt_response", [said("Name a bird.", "A wren.")]),
    "filled with input": (
        {"prompt": FILLED_INPUT, "response": "A."}, "prompt_response", [said("Name it.\n\nIt sings.", "A.")]
    ),
    "filled, as completion": (
        {"prompt": FILLED, "completion": "A."}, "prompt_completion", [said("Name a bird.", "A.")]
    ),
    "plain pair": ({"prompt": "Name one.", "response": "A."}, "prompt_response", [said("Name one.", "A.")]),
    "self-instruct": (SEVERAL, "self_instruct", [said("Rhyme.\n\ncat", "hat"), said("Rhyme.", "Oh.")]),
    "super-natural instructions": (
        TASK, "superni", [said("Reverse the word.\n\ncd", "dc"), said("Reverse the word.", "x")]
    ),
    "definition and output as text": (
        {"Definition": "Reverse.", "Instances": [{"id": "i", "input": "cd", "output": "dc"}]},
        "superni",
        [said("Reverse.\n\ncd", "dc")],
    ),
    "natural instructions, flat": (
        {"task_name": "t", "id": "i", "definition": "Reverse.", "inputs": "cd", "targets": "dc"},
        "natural_instructions",
        [said("Reverse.\n\ncd", "dc")],
    ),
    "p3": (P3, "p3", [said("Sad?", "No")]),
    "t0 in GPT-3's form": (
        {"prompt": "Sad?\n\n", "completion": " No<|endoftext|>\n"}, "prompt_completion", [said("Sad?", "No")]
    ),
    "flan": ({"inputs": "7 prime?", "targets": "yes", "task_name": "primes"}, "flan", [said("7 prime?", "yes")]),
    "chain of thought": (
        COT,
        "flan_cot",
        [said("Is 7 odd?\n- yes\n- no", "7 = 2 * 3 + 1.\nSo it is. The answer is yes.")],
    ),
    "open_orca": (
        {"id": "f.1", "system_prompt": "", "question": "Hi?", "response": "Ho."}, "open_orca", [said("Hi?", "Ho.")]
    ),
    "sharegpt": (
        sharegpt(("system", "Be kind."), ("human", "A?"), ("gpt", "B.")),
        "sharegpt",
        [(Message("system", "Be kind."), *said("A?", "B."))],
    ),
    "sharegpt that ends with a question": (
        sharegpt(("human", "A?"), ("gpt", "B."), ("human", "C?")), "sharegpt", [said("A?", "B.")]
    ),
    "lima": ({"conversations": ["A?", "B.", "C?", "D."], "source": "forum"}, "lima", [said("A?", "B.", "C?", "D.")]),
    "ultrachat": ({"id": "1", "data": ["A?", "B."]}, "ultrachat", [said("A?", "B.")]),
    "ultrachat on the hub": (
        {"prompt": "A?", "messages": [{"role": m.role, "content": m.content} for m in said("A?", "B.")]},
        "messages",
        [said("A?", "B.")],
    ),
    "guanaco": (
        {"input": "### Human: Hi ### Assistant:", "output": "Ho.", "text": "### Human: Hi ### Assistant:"},
        "guanaco",
        [said("Hi", "Ho.")],
    ),
    "guanaco's text": (
        {"text": GUANACO + " A duck."}, "guanaco_text", [said("Name a bird.", "A wren.", "And another?", "A duck.")]
    ),
    "oasst": (
        TREE,
        "oasst_tree",
        [
            said("Name a bird.", "A wren.", "Another?", "A duck."),
            said("Name a bird.", "A wren.", "A red one?", "A robin."),
        ],
    ),
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("case", GOLDEN)
def test_a_row_is_recognised_and_becomes_the_conversations_that_it_means(case: str, tmp_path: Path) -> None:
    row, name, conversations = GOLDEN[case]
    path = write(tmp_path / "rows.jsonl", [row])
    assert recognise(row) == name
    assert [record.messages for record in load(Source(path), Demonstration)] == conversations


@pytest.mark.parametrize("case", [case for case in GOLDEN if case != "oasst"])
def test_the_prompt_of_a_row_is_what_stands_before_its_last_answer(case: str, tmp_path: Path) -> None:
    row, _, conversations = GOLDEN[case]
    prompts = load(Source(write(tmp_path / "rows.jsonl", [row])), Prompt)
    if case == "sharegpt that ends with a question":
        conversations = [said("A?", "B.", "C?", "not yet")]
    assert [record.prompt for record in prompts] == [messages[:-1] for messages in conversations]


def test_every_format_is_read_in_some_test_here() -> None:
    by_name_only = {"superni_few_shot", "flan_cot_direct", "oasst_messages"}
    read = {name for _, name, _ in GOLDEN.values()} | by_name_only
    assert (
        {*INSTRUCTION_FORMATS, *DIALOGUE_FORMATS, "alpaca_text", "guanaco_text", "prompt_response"}
        <= read
        <= {*FORMATS}
    )


def one(row: dict[str, Any], tmp_path: Path, form: str = "auto", kind: Any = Demonstration) -> Any:
    return load(Source(write(tmp_path / "task7_reverse.train.jsonl", [row]), form), kind)[0]


def test_what_evaluation_needs_is_kept_in_meta(tmp_path: Path) -> None:
    flan = {"inputs": "7?", "targets": "yes", "task_name": "primes", "template_type": "zs_opt", "none": None}
    assert one(flan, tmp_path).meta == {"task_name": "primes", "template_type": "zs_opt"}
    assert one(P3 | {"answer_choices": ["Yes", "No"]}, tmp_path).meta == {"answer_choices": ["Yes", "No"]}
    gpt3 = {"prompt": "Sad?\n", "completion": "No<|endoftext|>", "answer_choices": ["Yes", "No"]}
    assert one(gpt3, tmp_path).meta == {"answer_choices": ["Yes", "No"]}
    task = one(TASK, tmp_path)
    assert task.meta == {"Categories": ["Words"], "instance": "i-1", "references": ["dc", "d c"]}
    assert one(COT, tmp_path, "flan_cot_direct").meta == {"target": "yes", "rationale": "7 = 2 * 3 + 1.\nSo it is."}


def test_instances_are_numbered_and_share_the_group_of_their_task(tmp_path: Path) -> None:
    records = load(Source(write(tmp_path / "task7_reverse.train.jsonl", [TASK])), Prompt)
    assert [(r.id, r.group) for r in records] == [
        ("task7_reverse.train:1.1", "task7_reverse"),
        ("task7_reverse.train:1.2", "task7_reverse"),
    ]
    seeds = load(Source(write(tmp_path / "seeds.jsonl", [SEVERAL, SEVERAL]), skip=1), Prompt)
    assert [(r.id, r.group) for r in seeds] == [
        ("seeds:1.2", "seeds:1"),
        ("seeds:2.1", "seeds:2"),
        ("seeds:2.2", "seeds:2"),
    ]


def test_the_few_shot_form_shows_the_definition_and_two_examples_before_the_instance(tmp_path: Path) -> None:
    (question,) = one(TASK, tmp_path, "superni_few_shot", Prompt).prompt
    assert question.content == (
        "Definition: Reverse the word.\n\nPositive Example 1 -\nInput: ab.\nOutput: ba.\n\n"
        "Positive Example 2 -\nInput: no.\nOutput: on.\n\n"
        "Now complete the following example -\nInput: cd.\nOutput:"
    )
    many = TASK | {"Positive Examples": [{"input": "a?", "output": "b"}] * 5}
    assert one(many, tmp_path, "superni_few_shot").messages[0].content.count("Input: a?\nOutput: b.") == 2


def test_chains_of_thought_are_read_from_tables_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "odd.tsv"
    path.write_bytes(b'"Odd?"\\nSay "yes.\tyes\tIt is.\r\nEven?\tno\tIt is "not".\n')
    direct = load(Source(str(path), "flan_cot_direct"), Demonstration)
    assert [record.messages for record in direct] == [said('"Odd?"\nSay "yes.', "yes"), said("Even?", "no")]
    reasoned = load(Source(str(path), "flan_cot"), Demonstration)
    assert reasoned[1].messages[-1].content == 'It is "not". The answer is no.'
    path.write_text("input\ttarget\trationale\nOdd?\tyes\tIt is.\n")
    assert len(load(Source(str(path), "flan_cot"), Demonstration)) == len(load(Source(str(path)), Demonstration)) == 1
    path.write_text("Odd?\tyes\tIt is.\nEven?\tno\tIt is not.\n")
    with pytest.raises(DataError, match=r"flan_cot or flan_cot_direct for a .tsv without a header line"):
        load(Source(str(path)), Demonstration)
    path.write_text("Odd?\tyes\n")
    with pytest.raises(DataError, match=r"odd.tsv:1: 2 cells, but there must be 3 \(input, target, rationale\)"):
        load(Source(str(path), "flan_cot"), Demonstration)


def test_a_table_whose_first_line_is_prose_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "odd.tsv"
    path.write_text("Is three odd?\tyes\tTwo and one are three.\nEven?\tno\tIt is.\n")
    found = load(Source(str(path)), Demonstration)
    assert (found.format, len(found)) == ("flan_cot", 2)
    path.write_text("inputs\ttargets\tchain of thought\nOdd?\tyes\tIt is.\n")
    found = load(Source(str(path)), Demonstration)
    assert (found.format, len(found)) == ("flan", 1)


def flat(node: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    """The messages of a tree as rows of a table, as the hub has them."""
    row = {"parent_id": parent, "message_tree_id": "Name a bird.", "rank": None, **node}
    replies = row.pop("replies")
    return [row, *(below for reply in replies for below in flat(reply, node["message_id"]))]


def test_a_table_of_messages_in_any_order_gives_the_threads_of_its_trees(tmp_path: Path) -> None:
    rows = flat(TREE["prompt"])
    other = (
        {"message_id": "q", "role": "prompter", "text": "Why?"},
        {"message_id": "a", "parent_id": "q", "role": "assistant", "text": "So."},
    )
    tree = [record.messages for record in load(Source(write(tmp_path / "tree.jsonl", [TREE])), Demonstration)]
    for order in (rows, rows[::-1]):
        messages = load(Source(write(tmp_path / "flat.jsonl", [order[0], *other, *order[1:]])), Demonstration)
        assert {record.messages for record in messages} == {*tree, said("Why?", "So.")}
        assert messages.format == "oasst_messages"
        assert len({record.group for record in messages}) == 2
        assert (
            len({record.messages for record in load(Source(str(tmp_path / "flat.jsonl"), skip=1), Demonstration)}) < 3
        )


def test_a_message_without_its_parent_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*flat(TREE["prompt"]), {"message_id": "x", "parent_id": "gone", "role": "assistant", "text": "Oh."}]
    path = write(tmp_path / "flat.jsonl", rows)
    with pytest.raises(
        DataError, match=rf"flat.jsonl:{len(rows)}: the message it replies to is missing from the data, found .*gone"
    ):
        load(Source(path), Demonstration)
    kept = load(Source(path, on_bad_row="drop"), Demonstration)
    assert (len(kept), kept.dropped) == (2, {"the message it replies to is missing from the data": 1})


# Rows that nobody can use and that the format is known for: always dropped, by this name.
TRAPS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong choice": (P3 | {"is_correct": False}, "a wrong answer choice"),
    "a template that gave nothing": (P3 | {"targets_pretokenized": "\n"}, "empty input or target"),
    "an empty completion": ({"prompt": "Sad?\n", "completion": "<|endoftext|>"}, "empty completion"),
    "a page cut at its start": (sharegpt(("gpt", "B."), ("human", "C?"), ("gpt", "D.")), "starts with the assistant"),
    "a tree by a machine": (
        {**TREE, "prompt": message("prompter", "Hi?", synthetic=True)}, "deleted, synthetic or not passed"
    ),
    "a tree without an answer": (
        {**TREE, "prompt": message("prompter", "Hi?")}, "no answer that people wrote and passed"
    ),
    "an unfinished tree": ({**TREE, "tree_state": "growing"}, "tree not ready for export"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAPS)
def test_the_known_traps_are_dropped_by_name(case: str, tmp_path: Path) -> None:
    row, reason = TRAPS[case]
    good = next(good for good, name, _ in GOLDEN.values() if name == recognise(row))
    records = load(Source(write(tmp_path / "rows.jsonl", [good, row])), Demonstration)
    assert records.dropped == {reason: 1}


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "true as output": ({"instruction": "Hi?", "output": True}, r"'output' must be text, found a boolean \(true\)"),
    "true as response": ({"instruction": "Hi?", "response": True}, r"'response' must be text, found a boolean"),
    "true as target": ({"inputs": "Hi?", "targets": True}, r"'targets' must be text, found a boolean"),
    "true as p3 target": (P3 | {"targets_pretokenized": True}, r"'targets_pretokenized' must be text, found a boolean"),
    "true among outputs": (
        TASK | {"Instances": [{"output": [True]}]}, r"'Instances\[0\].output' must be text, found a boolean"
    ),
    "empty output": ({"instruction": "Hi?", "context": "", "response": " "}, r"'response' is empty"),
    "no outputs": (TASK | {"Instances": [{"input": "a", "output": []}]}, "an instance has no 'output'"),
    "empty instance": (SEVERAL | {"instances": [{"input": "", "output": ""}]}, r"'instances\[0\].output' is empty"),
    "no list of instances": (SEVERAL | {"instances": "none"}, r"'instances' must be a list, found text \('none'\)"),
    "instance is a text": (SEVERAL | {"instances": ["x"]}, r"'instances\[0\]' must be an object, found text"),
    "unknown speaker": (sharegpt(("human", "A?"), ("ghost", "7")), r"'conversations\[1\].from' must be one of sys"),
    "a tool": (sharegpt(("human", "A?"), ("tool", "7")), r"'conversations\[1\]' is spoken by tool; tool calls are not"),
    "speaker is a list": (sharegpt((["human"], "A?")), r"'conversations\[0\].from' must be one of .* a list"),  # type: ignore[arg-type]
    "turn without value": ({"conversations": [{"from": "human"}]}, r"'conversations\[0\]' must have 'from' and"),
    "guanaco turn": ({"text": "### Human: ### Assistant: Ho."}, r"'turn \[0\] of text' is empty"),
    "rank is text": (
        TREE | {"prompt": message("prompter", "Hi?", message("assistant", "Ho", rank="0"))}, "'rank' must be a number"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_an_odd_value_is_named_with_row_and_field(case: str, tmp_path: Path) -> None:
    row, error = ODD[case]
    with pytest.raises(DataError, match=rf"rows.jsonl:1: {error}.*fix or delete the row") as caught:
        load(Source(write(tmp_path / "rows.jsonl", [row])), Demonstration)
    assert "\n" not in str(caught.value)


def test_a_bad_instance_costs_no_other(tmp_path: Path) -> None:
    task = TASK | {"Instances": [{"input": "a", "output": ""}, *TASK["Instances"]]}
    records = load(Source(write(tmp_path / "task.jsonl", [task]), on_bad_row="drop"), Demonstration)
    assert (len(records), records.dropped) == (2, {"'Instances.output' is empty": 1})


def test_texts_come_through_as_they_stand(tmp_path: Path) -> None:
    odd = "a\r\nb \ufffd <|endoftext|> \\n ### Human: c"
    record = one({"instruction": odd, "input": "", "output": odd}, tmp_path)
    assert [m.content for m in record.messages] == [odd, odd]
    assert one({"text": odd}, tmp_path, kind=Document).text == odd


def test_a_missing_column_is_named_also_for_formats_that_gather(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", [TASK, {"Definition": "x"}])
    with pytest.raises(DataError, match=r"tasks.jsonl:2: 'Instances' is missing; the row has Definition"):
        load(Source(path), Demonstration)


def test_a_prompt_that_only_speaks_of_the_template_keeps_its_words(tmp_path: Path) -> None:
    about = f"What does this ask for? {FILLED}"
    assert one({"prompt": about, "response": "A bird."}, tmp_path).messages[0].content == about
    inner = f"{PLAIN}### Instruction:\nWhat follows '### Response:\n'?\n\n### Response:\n"
    assert one({"prompt": inner, "response": "It."}, tmp_path).messages[0].content == "What follows '### Response:\n'?"
