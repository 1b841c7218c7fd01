"""Each published format, by an invented row, becomes the records that it means."""

from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Document, Message, Prompt
from data_schema.formats.comparisons import COMPARISON_FORMATS, GENERAL_COMPARISONS
from data_schema.formats.dialogues import DIALOGUE_FORMATS
from data_schema.formats.instructions import INSTRUCTION_FORMATS
from data_schema.formats.parts import Drop, Origin
from data_schema.formats.table import FORMATS, reader_for, recognise

AT = Origin("file:1", "file.jsonl")


def turns(*contents: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in turns(*contents)]


def read(row: dict[str, Any], kind: Any) -> Any:
    return reader_for(recognise(row), kind)(row, AT)


ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Red."}
LIMA = ALPACA | {"instruction": "And one more?", "history": [["Name a colour.", "Blue."]]}
SYSTEM = {"role": "system", "content": "Be kind."}
TEXT_PAIR = {"prompt": "Tip?", "chosen": "Rest.", "rejected": "No."}
LIST_PAIR = {"prompt": talk("Tip?"), "chosen": talk("Tip?", "Rest.")[1:], "rejected": talk("Tip?", "No.")[1:]}
IMPLICIT = {"chosen": talk("A?", "B.", "Tip?", "Rest."), "rejected": talk("A?", "B.", "Tip?", "No.")}
REPEATED = {"prompt": "Tip?", "chosen": talk("Tip?", "Rest."), "rejected": talk("Tip?", "No.")}
OWN = {"id": "own", "source": "s", "prompt": talk("Tip?"), "responses": ["Rest.", "No."], "ranks": [1, 2]}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tip?\n\nAssistant: Rest. Human: no turn ",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tip?\n\nAssistant: No.",
}

PROMPTS: dict[str, tuple[dict[str, Any], str, tuple[Message, ...]]] = {
    "own": (OWN, "records", turns("Tip?")),
    "hh": (HH, "hh", turns("Hi", "Hello.", "Tip?")),
    "alpaca": (ALPACA, "alpaca", turns("Name a colour.")),
    "alpaca with text": (ALPACA | {"text": "Below ..."}, "alpaca", turns("Name a colour.")),
    "alpaca with input": (ALPACA | {"input": "Not red."}, "alpaca", turns("Name a colour.\n\nNot red.")),
    "alpaca no input": (ALPACA | {"input": "<noinput>"}, "alpaca", turns("Name a colour.")),
    "alpaca without input": ({"instruction": "Hi?", "output": "Yes."}, "alpaca", turns("Hi?")),
    "lima": (LIMA, "alpaca", turns("Name a colour.", "Blue.", "And one more?")),
    "ranked alpaca": (ALPACA | {"output": ["Red.", "Um."]}, "alpaca_ranking", turns("Name a colour.")),
    "alpaca pair": (ALPACA | {"chosen": "Red.", "rejected": "Um."}, "alpaca_preference", turns("Name a colour.")),
    "text pair": (TEXT_PAIR, "preference", turns("Tip?")),
    "message pair": (LIST_PAIR, "preference", turns("Tip?")),
    "pair that repeats": (REPEATED, "preference", turns("Tip?")),
    "text prompt of a longer talk": ({"prompt": "A?", **IMPLICIT}, "preference", turns("A?", "B.", "Tip?")),
    "implicit pair": (IMPLICIT, "preference_implicit", turns("A?", "B.", "Tip?")),
    "ranked": ({"prompt": "Tip?", "responses": ["Rest.", "No."], "ranks": [1, 2]}, "ranked", turns("Tip?")),
    "messages": ({"messages": talk("A?", "B.", "C?", "D.")}, "messages", turns("A?", "B.", "C?")),
    "messages to answer": ({"messages": talk("A?", "B.", "C?")}, "messages", turns("A?", "B.", "C?")),
    "completion": ({"prompt": "Tip?", "completion": "Rest."}, "prompt_completion", turns("Tip?")),
    "prompt": ({"prompt": "Tip?"}, "prompt", turns("Tip?")),
    "prompt messages": ({"prompt": talk("A?", "B.", "C?")}, "prompt", turns("A?", "B.", "C?")),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_a_row_is_recognised_and_gives_its_prompt(case: str) -> None:
    row, name, prompt = PROMPTS[case]
    assert recognise(row) == name
    record = read(row, Prompt) if name != "records" else read(row, Comparison)
    assert record.prompt == prompt


COMPARISONS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[int, ...]]] = {
    "own": (OWN, ("Rest.", "No."), (1, 2)),
    "hh": (HH, ("Rest. Human: no turn", "No."), (1, 2)),
    "ranked alpaca": (ALPACA | {"output": ["Red.", "Um.", "No."]}, ("Red.", "Um.", "No."), (1, 2, 3)),
    "alpaca pair": (ALPACA | {"chosen": "Red.", "rejected": "Um."}, ("Red.", "Um."), (1, 2)),
    "text pair": (TEXT_PAIR, ("Rest.", "No."), (1, 2)),
    "message pair": (LIST_PAIR, ("Rest.", "No."), (1, 2)),
    "pair that repeats": (REPEATED, ("Rest.", "No."), (1, 2)),
    "implicit pair": (IMPLICIT, ("Rest.", "No."), (1, 2)),
    "ranked": ({"prompt": "Tip?", "responses": ["A", "B", "C"], "ranks": [2, 1, 2]}, ("A", "B", "C"), (2, 1, 2)),
}


@pytest.mark.parametrize("case", COMPARISONS)
def test_a_preference_row_gives_its_responses_and_ranks(case: str) -> None:
    row, responses, ranks = COMPARISONS[case]
    record = read(row, Comparison)
    assert (record.responses, record.ranks) == (responses, ranks)


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "hh": (HH, turns("Hi", "Hello.", "Tip?", "Rest. Human: no turn")),
    "alpaca": (ALPACA, turns("Name a colour.", "Red.")),
    "lima": (LIMA, turns("Name a colour.", "Blue.", "And one more?", "Red.")),
    "ranked alpaca": (ALPACA | {"output": ["Red.", "Um."]}, turns("Name a colour.", "Red.")),
    "alpaca pair": (ALPACA | {"chosen": "Blue.", "rejected": "Um."}, turns("Name a colour.", "Blue.")),
    "text pair": (TEXT_PAIR, turns("Tip?", "Rest.")),
    "implicit pair": (IMPLICIT, turns("A?", "B.", "Tip?", "Rest.")),
    "messages": ({"messages": talk("A?", "B.")}, turns("A?", "B.")),
    "messages with system": ({"messages": [SYSTEM, *talk("A?", "B.")]}, (Message(**SYSTEM), *turns("A?", "B."))),
    "completion": ({"prompt": "Tip?", "completion": " Rest."}, turns("Tip?", " Rest.")),
    "GPT-3 completion": ({"prompt": "Tip?", "completion": " Rest.<|endoftext|>"}, turns("Tip?", "Rest.")),
    "message completion": ({"prompt": talk("A?"), "completion": talk("Tip?", "B.")[1:]}, turns("A?", "B.")),
}


@pytest.mark.parametrize("case", DEMONSTRATIONS)
def test_a_row_gives_the_conversation_to_imitate(case: str) -> None:
    row, messages = DEMONSTRATIONS[case]
    assert read(row, Demonstration).messages == messages


def test_text_rows_are_documents_as_they_stand() -> None:
    assert read({"text": " = Title = "}, Document).text == " = Title = "


def test_ids_and_sources_are_the_row_s_place_and_own_records_keep_theirs() -> None:
    record = read(ALPACA, Demonstration)
    assert (record.id, record.source) == AT
    assert (read(OWN, Comparison).id, read(OWN, Comparison).source) == ("own", "s")


def test_columns_that_no_field_holds_are_kept_in_meta_unless_empty() -> None:
    row = TEXT_PAIR | {"score_chosen": 8.5, "margin": 2, "note": None}
    assert read(row, Comparison).meta == {"score_chosen": 8.5}
    assert read(row, Comparison).margin == 2.0
    assert read(ALPACA | {"text": "Below ..", "category": "qa"}, Demonstration).meta == {"category": "qa"}


def hh(chosen: str, rejected: str = "\n\nHuman: Hi\n\nAssistant: No.") -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


HH_TRAPS: dict[str, tuple[dict[str, str], str]] = {
    "other prompts": (hh("\n\nHuman: Ho\n\nAssistant: Yes."), "prompts differ"),
    "other number of turns": (hh("\n\nHuman: Hi\n\nAssistant: Yes.\n\nHuman: Ho\n\nAssistant: Ha."), "prompts differ"),
    "empty answer": (hh("\n\nHuman: Hi\n\nAssistant: "), "empty answer"),
    "two answers in a row": (
        hh("\n\nHuman: Hi\n\nAssistant: A\n\nAssistant: B", "\n\nHuman: Hi\n\nAssistant: A\n\nAssistant: C"),
        "turns do not alternate",
    ),
    "no answer": (hh("\n\nHuman: Hi", "\n\nHuman: Ho"), "turns do not alternate"),
    "empty question": (hh("\n\nHuman: \n\nAssistant: A", "\n\nHuman: \n\nAssistant: B"), "empty turn"),
}


@pytest.mark.parametrize("case", HH_TRAPS)
def test_the_known_traps_of_hh_are_dropped_by_name(case: str) -> None:
    row, reason = HH_TRAPS[case]
    assert read(row, Comparison) == Drop(reason)


def test_a_transcript_that_starts_with_the_assistant_is_dropped_when_the_format_is_named() -> None:
    row = hh("\n\nAssistant: A", "\n\nAssistant: B")
    assert reader_for("hh", Comparison)(row, AT) == Drop("turns do not alternate")
    assert reader_for("hh", Demonstration)(row, AT) == Drop("turns do not alternate")


def test_hh_dialogues_that_open_alike_share_a_group() -> None:
    groups = {read(row, kind).group for row in (HH, hh("\n\nHuman:  hi \n\nAssistant: A")) for kind in (Prompt,)}
    assert len(groups) == 1
    assert read(HH, Comparison).group == read(HH, Demonstration).group == groups.pop()


BAD_ROWS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "empty output": (ALPACA | {"output": ""}, Demonstration, "'output' is empty"),
    "boolean output": (ALPACA | {"output": True}, Demonstration, r"'output' must be text, found a boolean \(true\)"),
    "input of a wrong type": (ALPACA | {"input": 5}, Prompt, r"'input' must be text, found a number \(5\)"),
    "equal answers": (TEXT_PAIR | {"rejected": "Rest."}, Comparison, "chosen and rejected are the same text"),
    "empty rejected": (TEXT_PAIR | {"rejected": " "}, Comparison, "'rejected' is empty"),
    "another prompt inside": (REPEATED | {"chosen": talk("Top?", "Rest.")}, Comparison, "other messages than 'prompt'"),
    "prompts apart": (IMPLICIT | {"rejected": talk("Tip?", "No.")}, Comparison, "differ in the last message only"),
    "no answer inside": (IMPLICIT | {"chosen": talk("A?")}, Comparison, "'chosen' must end with the assistant"),
    "empty ranked output": (ALPACA | {"output": ["a", ""]}, Comparison, r"'output\[1\]' is empty"),
    "one ranked output": (ALPACA | {"output": ["a"]}, Comparison, "must have two or more, found 1"),
    "bad history": (LIMA | {"history": [["a"]]}, Prompt, r"'history\[0\]' must be \[question, answer\]"),
    "unknown role": ({"messages": [{"role": "narrator", "content": "a"}]}, Prompt, "one of system, user, assistant"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_the_field(case: str) -> None:
    row, kind, error = BAD_ROWS[case]
    with pytest.raises(DataError, match=error) as caught:
        read(row, kind)
    assert caught.value.field


def test_single_answers_marked_bad_demonstrate_nothing() -> None:
    for row in (ALPACA | {"tag": False}, {"messages": talk("A?", "B."), "label": False}):
        assert read(row, Demonstration) == [Drop("answer marked bad")]


def test_an_unknown_format_lists_the_columns_and_the_nearest_formats() -> None:
    with pytest.raises(DataError, match=r"columns question, chosen with such values.*closest: .*: chosen, rejected"):
        recognise({"question": "a", "chosen": "b"})


def test_cells_in_the_place_of_a_header_are_cut_and_the_formats_without_one_are_named() -> None:
    with pytest.raises(DataError, match=r"columns Is it so[^,]{29}\.\.\., no, .*set the format .flan_cot or flan_cot"):
        recognise({"Is it so? " * 9: "x", "no": "y", "Because.": "z"})


def test_a_kind_that_a_format_cannot_give_names_the_formats_that_can() -> None:
    with pytest.raises(DataError, match="gives demonstrations or prompts, not comparisons; use one of records"):
        reader_for("alpaca", Comparison)


# Tested with the instruction formats and with the general ones.
TEXT_FORMS = ("alpaca_text", "guanaco_text", "prompt_response", "transcript", "conversation", "pair", "question")


def test_every_format_is_recognised_by_some_row_here_or_in_the_tests_of_its_family() -> None:
    rows = [row for row, *_ in [*PROMPTS.values(), *COMPARISONS.values()]] + [{"text": "x"}]
    elsewhere = {*COMPARISON_FORMATS, *GENERAL_COMPARISONS, *INSTRUCTION_FORMATS, *DIALOGUE_FORMATS, *TEXT_FORMS}
    assert {recognise(row) for row in rows} == set(FORMATS) - elsewhere


# Formats that are only used if they are named, so they may stand behind one that needs fewer columns.
BY_NAME = {"pandalm_votes", "superni_few_shot", "flan_cot_direct", "safe_rlhf_better", "safe_rlhf_safer"}


def test_no_format_stands_behind_one_that_fits_any_row_with_fewer_of_its_columns() -> None:
    names = [name for name in FORMATS if name not in BY_NAME]
    hidden = [
        (first, second)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        if FORMATS[first].columns < FORMATS[second].columns and FORMATS[first].looks_right.__name__ == "_any"
    ]
    assert hidden == []
