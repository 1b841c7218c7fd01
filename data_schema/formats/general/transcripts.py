"""Conversations written into one text: "Human: ..", "### Human: ..", ChatML, and the chat markup of Llama, Gemma and
others. They become messages, since a template around them would nest one markup in another.

A text is a transcript only if it begins with a speaker's mark; text that mentions a mark further on is ordinary text.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from data_schema.errors import DataError
from data_schema.messages import Message

_WHO = {
    "system": "system", "sys": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user", "instruction": "user", "gpt4 correct user": "user",
    "assistant": "assistant", "gpt": "assistant", "ai": "assistant", "bot": "assistant", "model": "assistant",
    "chatbot": "assistant", "response": "assistant", "gpt4 correct assistant": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_NAMES = "|".join(sorted(map(re.escape, _WHO), key=len, reverse=True))
_ASKING = "Human|User|USER|HUMAN|System|SYSTEM|human|user|system|prompter|Prompter"
_ANSWERING = "Assistant|ASSISTANT|assistant|AI|Bot|bot|Chatbot|ChatGPT|GPT"
_LABELS = f"{_ASKING}|{_ANSWERING}"
# Marks that begin a text before the first speaker's, and that end a turn.
_OPENING = r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)?\s*"
END_MARKS = (
    "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>", "<|end|>", "<|endoftext|>",
    "<|end_of_turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|eom_id|>", "<|eos|>",
)  # fmt: skip


class Style(NamedTuple):
    begins: re.Pattern[str]  # how a transcript of this style begins
    mark: re.Pattern[str]  # a speaker's mark; the first group is the speaker
    closes: bool  # whether a mark ends each turn, so that a last question is known to be whole


def _markup(mark: str) -> Style:
    return Style(re.compile(_OPENING + mark, re.I), re.compile(mark, re.I), closes=True)


def _labels(lead: str, names: str, first: str, after: str = ":") -> Style:
    return Style(re.compile(rf"\s*{lead}(?:{first}){after}"), re.compile(rf"{lead}({names}){after}"), closes=False)


STYLES: dict[str, Style] = {
    "ChatML": _markup(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n?"),
    "Llama 3": _markup(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),
    "Gemma": _markup(r"<start_of_turn>[ \t]*(\w+)[ \t]*\n?"),
    "role tokens": _markup(rf"<[|\uff5c](?P<who>{_NAMES})[|\uff5c]>\s*"),
    "role tags": _labels(r"", "<(?:human|bot|user|assistant|system)>", "<human>|<user>|<system>"),
    "OpenChat": _labels(r"", "GPT4 Correct User|GPT4 Correct Assistant", "GPT4 Correct User"),
    "###": _labels(r"###[ \t]*", "Human|User|Assistant|System|Response|Instruction", "Human|User|System", ":?[ \t]*"),
}
# Labels at the start of a line. HH-RLHF has them after an empty line only, and plain ones inside its turns.
_BLANK_LINE = re.compile(rf"(?:^\s*|\n[ \t]*\n+)({_LABELS})[ \t]*:")
_LINE = re.compile(rf"(?:^\s*|\n+)({_LABELS})[ \t]*:")
_INLINE = re.compile(r"(?:^\s*|\s|</s>)(USER|ASSISTANT|SYSTEM):")
_BEGINS = re.compile(rf"\s*(?:{_ASKING})[ \t]*:")
_ANSWERED = re.compile(rf"(?:\n|\s)(?:{_ANSWERING})[ \t]*:")
_FIRST = re.compile(rf"\s*(?:{_LABELS})[ \t]*:")
_ANSWERS_FIRST = re.compile(rf"\s*(?:{_ANSWERING})[ \t]*:.*\n[ \t]*(?:{_ASKING})[ \t]*:", re.S)
_MAY_BEGIN = re.compile(rf"\s*(?:<|\[INST|###|GPT4 Correct|A (?:chat|conversation) between|(?:{_LABELS})[ \t]*:)")
_FIRST_CHARACTERS = frozenset((*"<[#G", "", *" \t\n\r\f\v", *(name[0] for name in _LABELS.split("|"))))
_INST = re.compile(_OPENING + r"\[INST\]")
_INST_TURN = re.compile(r"\s*(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=(?:</s>)?\s*(?:<s>)?\s*\[INST\]|$)", re.S)
_VICUNA = re.compile(r"\s*(A (?:chat|conversation) between a .*?[.!])\s+(?=(?:USER|Human|User|### Human):)", re.S)
_SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*(.*)", re.S)


def bare_answer(text: str) -> str:
    """An answer without the end marks of chat markup behind it; unchanged if it has none."""
    last = text[-1:]
    if last != ">" and not last.isspace():
        return text
    bare = text.rstrip()
    if not bare.endswith(END_MARKS):
        return text
    while (mark := next((mark for mark in END_MARKS if bare.endswith(mark)), None)) is not None:
        bare = bare.removesuffix(mark).rstrip()
    return bare


def style_of(text: str) -> str | None:
    """The style of the transcript that a text begins as; None for ordinary text."""
    return _style(text) if text[:1] in _FIRST_CHARACTERS else None


@lru_cache(maxsize=8)  # each part of a row asks for that of its prompt
def _style(text: str) -> str | None:
    if not _MAY_BEGIN.match(text):
        return None
    for name, style in STYLES.items():
        if style.begins.match(text):
            return name
    if _VICUNA.match(text):
        return "Vicuna"
    if _INST.match(text):
        return "[INST]"
    # "User:" is written into ordinary text too, so a second speaker has to follow.
    if _ANSWERS_FIRST.match(text):
        return "labels"
    if _BEGINS.match(text) and (_ANSWERED.search(text) or re.match(r"\s*(?:Human|HUMAN|[Pp]rompter)[ \t]*:", text)):
        return "labels"
    return None


def markup_of(text: str) -> str | None:
    """The style of the chat markup that a text begins with; None for ordinary text."""
    style = style_of(text)
    return style if style == "[INST]" or (style in STYLES and STYLES[style].closes) else None


def _turns(text: str, style: str) -> list[tuple[str, str]]:
    """(speaker, text) of each turn; the text of a turn that is left open is empty."""
    if style == "[INST]":
        return _inst_turns(text)
    if style == "Vicuna" and (lead := _VICUNA.match(text)):
        rest = text[lead.end() :]
        return [("system", lead[1].strip()), *_turns(rest, style_of(rest) or "labels")]
    mark = STYLES[style].mark if style in STYLES else _label_mark(text)
    start, *parts = mark.split(text)
    if start.strip() and not re.fullmatch(_OPENING, start):
        raise DataError(f"a text begins as a transcript ({style}) that cannot be read")
    turns = []
    for speaker, said in zip(parts[0::2], parts[1::2], strict=True):
        who = _WHO.get(speaker.lower().strip("<>"))
        if who is None:
            raise DataError(f"a transcript ({style}) has the speaker {speaker}, which is not supported")
        turns.append((who, bare_answer(said).strip()))
    return turns


def _label_mark(text: str) -> re.Pattern[str]:
    """The mark of the text's turns: after an empty line if one is there, else at the start of a line."""
    first = _FIRST.match(text)
    if _BLANK_LINE.search(text, first.end() if first else 0):
        return _BLANK_LINE
    return _LINE if len(_LINE.findall(text)) > 1 else _INLINE


def _inst_turns(text: str) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    at = 0
    for found in _INST_TURN.finditer(text):
        if found.start() != at and text[at : found.start()].strip() not in ("", "</s>", "</s><s>", "</s> <s>"):
            break
        asked, answered = found[1].strip(), bare_answer(found[2]).strip()
        if not turns and (system := _SYS.fullmatch(found[1])):
            turns.append(("system", system[1].strip()))
            asked = system[2].strip()
        turns += [("user", asked), ("assistant", answered)]
        at = found.end()
    if bare_answer(text[at:]).strip() or not turns:
        raise DataError("a text begins as a transcript ([INST]) that cannot be read")
    return turns


def _messages(turns: list[tuple[str, str]], style: str) -> tuple[Message, ...]:
    spoken = [who for who, _ in turns if who != "system"]
    if spoken != ["assistant" if i % 2 else "user" for i in range(len(spoken))]:
        raise DataError(f"the turns of a transcript ({style}) do not alternate", reason="turns do not alternate")
    if any(not said for _, said in turns):
        raise DataError(f"a transcript ({style}) has an empty turn", reason="empty turn")
    return tuple(Message(who, said) for who, said in turns)


def asked_in(text: str) -> tuple[Message, ...] | None:
    """The messages of a prompt that is a transcript; None for ordinary text. Raises DataError for a transcript that
    does not end where an answer begins."""
    style = style_of(text)
    if style is None:
        return None
    turns, is_open = _turns_said(text, style)
    if not is_open and (not turns or turns[-1][0] != "user" or not (style in STYLES and STYLES[style].closes)):
        raise DataError(
            f"the prompt is a transcript ({style}) that does not end with the mark of the assistant; write it as"
            " messages",
            reason="a transcript that does not end with the mark of the assistant",
        )
    return _messages(turns, style)


def spoken_in(text: str) -> tuple[Message, ...] | None:
    """The messages of a whole conversation that is a transcript; None for ordinary text. A place for a further answer
    at its end is left out."""
    style = style_of(text)
    return None if style is None else _messages(_turns_said(text, style)[0], style)


def _turns_said(text: str, style: str) -> tuple[list[tuple[str, str]], bool]:
    """(turns without an empty system prompt, whether a place for a further answer was at their end)."""
    turns = [turn for turn in _turns(text, style) if turn != ("system", "")]
    is_open = bool(turns) and turns[-1] == ("assistant", "")
    return turns[: len(turns) - is_open], is_open


def answer_after(asked: str, answer: str) -> str:
    """The answer to a prompt in one text: after a transcript without the blank and end mark around it, else as it is.
    Raises DataError if the conversation goes on in it."""
    style = style_of(asked)
    if style is None:
        return answer
    text = bare_answer(answer).strip()
    mark = STYLES[style].mark if style in STYLES else _INST if style == "[INST]" else _label_mark(asked)
    goes_on = mark.search(f"- {text}")  # an answer that begins with a mark does not go on with one
    if goes_on:
        raise DataError("the answer to a transcript goes on with further turns", reason="turns do not alternate")
    return text
