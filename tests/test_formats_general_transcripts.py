"""A text that is a conversation becomes messages or is refused; ordinary text stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_schema import Comparison, DataError, Demonstration, Prompt, Source, load
from data_schema.formats.general.transcripts import answer_after, asked_in, bare_answer, spoken_in, style_of

ONE = [("user", "Hi?")]
TWO = [("user", "Hi?"), ("assistant", "Ho."), ("user", "Why?")]
BRIEF = [("system", "Be brief."), ("user", "Hi?")]

PROMPTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "HH-RLHF": ("\n\nHuman: Hi?\n\nAssistant:", ONE),
    "HH-RLHF, two turns": ("\n\nHuman: Hi?\n\nAssistant: Ho.\n\nHuman: Why?\n\nAssistant: ", TWO),
    "without the first empty line": ("Human: Hi?\n\nAssistant: Ho.\n\nHuman: Why?\n\nAssistant:", TWO),
    "lines": ("Human: Hi?\nAssistant: Ho.\nHuman: Why?\nAssistant:", TWO),
    "User": ("User: Hi?\n\nAssistant:", ONE),
    "System": ("System: Be brief.\nUser: Hi?\nAssistant:", BRIEF),
    "small letters": ("user: Hi?\nassistant: Ho.\nuser: Why?\nassistant:", TWO),
    "one line": ("USER: Hi? ASSISTANT: Ho.</s>USER: Why? ASSISTANT:", TWO),
    "Vicuna": ("A chat between a user and an assistant. USER: Hi? ASSISTANT:",
               [("system", "A chat between a user and an assistant."), *ONE]),
    "###": ("### Human: Hi? ### Assistant: Ho. ### Human: Why? ### Assistant:", TWO),
    "ChatML": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
               BRIEF),
    "ChatML, closed": ("<|im_start|>user\nHi?<|im_end|>\n", ONE),
    "Llama 2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST]", BRIEF),
    "Llama 2, two turns": ("<s>[INST] Hi? [/INST] Ho. </s><s>[INST] Why? [/INST]", TWO),
    "Llama 3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n", ONE),
    "Gemma": ("<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n", ONE),
    "Zephyr": ("<|system|>\n</s>\n<|user|>\nHi?</s>\n<|assistant|>\n", ONE),
    "DeepSeek": ("<\uff5cUser\uff5c>Hi?<\uff5cAssistant\uff5c>", ONE),
    "OpenChat": ("GPT4 Correct User: Hi?<|end_of_turn|>GPT4 Correct Assistant:", ONE),
    "tags": ("<human>: Hi?\n<bot>:", ONE),
}  # fmt: skip


def pairs(messages: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_that_is_a_transcript_becomes_its_messages(case: str) -> None:
    text, messages = PROMPTS[case]
    assert pairs(asked_in(text)) == messages
    whole = text.rstrip() + " The end." if style_of(text) != "ChatML" or "closed" not in case else None
    if whole:
        assert pairs(spoken_in(whole)) == [*messages, ("assistant", "The end.")]


REFUSED: dict[str, tuple[str, str]] = {
    "ends with the user": ("User: a\n\nAssistant: b\n\nUser: c", "does not end with the mark of the assistant"),
    "ends with a begun answer": ("\n\nHuman: a\n\nAssistant: One:", "does not end with the mark of the assistant"),
    "one speaker": ("\n\nHuman: a", "cannot be read|does not end"),
    "a prompter alone": ("prompter: a", "cannot be read|does not end"),
    "two users": ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", "do not alternate"),
    "the assistant first": ("Assistant: a\nUser: b\nAssistant:", "do not alternate"),
    "an empty turn": ("\n\nHuman: \n\nAssistant:", "has an empty turn"),
    "a tool": ("<|im_start|>user\na<|im_end|>\n<|im_start|>tool\nb<|im_end|>\n<|im_start|>assistant\n", "speaker tool"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_transcript_that_does_not_ask_is_refused(case: str) -> None:
    text, error = REFUSED[case]
    with pytest.raises(DataError, match=error) as caught:
        asked_in(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Explain the log line 'User: ann'.",
        "Write a play.\nHuman: Hi\nAssistant: Ho",
        "User: ann cannot log in\nIssue: none",
        "Users: many\nAssistants: few",
        "Human beings: a history",
        "Q: Is it?\nA:",
        "Task: Name a bird.\nOutput:",
        "What does <|im_start|>user mean?",
        "# Human: a heading",
        "<div>Human: no</div>",
    ],
)
def test_text_that_only_mentions_a_speaker_is_not_torn_apart(text: str) -> None:
    assert style_of(text) is None
    assert asked_in(text) is None and spoken_in(text) is None
    assert answer_after(text, " a </s>") == " a </s>"


def test_marks_inside_a_turn_of_hh_are_text() -> None:
    text = "\n\nHuman: Hi?\nHuman: no\n\nAssistant: Ho. Human: no\n\nHuman: Why?\n\nAssistant:"
    assert pairs(asked_in(text)) == [("user", "Hi?\nHuman: no"), ("assistant", "Ho. Human: no"), ("user", "Why?")]


def test_end_marks_behind_an_answer_are_removed_and_nothing_else() -> None:
    assert bare_answer("A saw. <|im_end|>\n") == bare_answer("A saw.</s> <|endoftext|>") == "A saw."
    for text in (" A saw.\n", "<|im_end|> ends a turn.", ""):
        assert bare_answer(text) == text


def test_an_answer_with_further_turns_is_refused() -> None:
    for asked, answer in (
        ("\n\nHuman: Hi?\n\nAssistant:", "Ho.\n\nHuman: Why?"),
        ("<|im_start|>user\nHi?<|im_end|>\n", "Ho.<|im_end|>\n<|im_start|>user\nWhy?"),
        ("[INST] Hi? [/INST]", "Ho. [INST] Why?"),
        ("Human: Hi?\nAssistant: Ho.\nHuman: Why?\nAssistant:", "So.\nHuman: Hm?"),
    ):
        with pytest.raises(DataError, match="goes on with further turns"):
            answer_after(asked, answer)


def load_rows(folder: Path, row: dict[str, Any], kind: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load(Source(str(path)), kind)[0]


@pytest.mark.parametrize("names", [("prompt", "completion"), ("instruction", "output"), ("question", "answer")])
def test_a_transcript_is_read_in_every_column_that_asks(names: tuple[str, str], tmp_path: Path) -> None:
    record = load_rows(tmp_path, {names[0]: PROMPTS["ChatML"][0], names[1]: "Ho.<|im_end|>"}, Demonstration)
    assert pairs(record.messages) == [*BRIEF, ("assistant", "Ho.")]


def test_pairs_after_a_transcript_lose_the_blank_before_them(tmp_path: Path) -> None:
    row = {"prompt": PROMPTS["HH-RLHF, two turns"][0], "response": " Yes.", "chosen": " Yes.", "rejected": " No."}
    record = load_rows(tmp_path, row, Comparison)
    assert (pairs(record.prompt), record.responses) == (TWO, ("Yes.", "No."))
    assert pairs(load_rows(tmp_path, row, Prompt).prompt) == TWO


def test_an_answer_may_be_a_dialogue_that_was_asked_for(tmp_path: Path) -> None:
    row = {"prompt": "Write a dialogue.", "chosen": "User: Hi\nBot: Ho", "rejected": "User: Hi\n\nAI: Um"}
    assert load_rows(tmp_path, row, Comparison).responses == (row["chosen"], row["rejected"])


@pytest.mark.parametrize("case", ["HH-RLHF, two turns", "ChatML", "Llama 2", "Llama 3", "Gemma", "Zephyr", "tags"])
def test_a_column_of_text_may_hold_a_whole_conversation(case: str, tmp_path: Path) -> None:
    text, messages = PROMPTS[case]
    record = load_rows(tmp_path, {"text": f"{text.rstrip()} Yes.</s>"}, Demonstration)
    assert pairs(record.messages) == [*messages, ("assistant", "Yes.")]
    assert pairs(load_rows(tmp_path, {"text": f"{text.rstrip()} Yes."}, Prompt).prompt) == messages
