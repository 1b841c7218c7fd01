"""Conversations that are not in a `messages` column: ShareGPT, LIMA, UltraChat, Guanaco's text and OASST's trees."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.general.single import TALK_READERS
from data_schema.formats.oasst import oasst_comparison
from data_schema.formats.parts import Drop, Format, NumberedRows, Origin, Outcome, Reader, Row, rest, text_of
from data_schema.records import Comparison, Demonstration, Message, Prompt, check_list, check_text, describe


def _talk(turns: Sequence[Message], row: Row, origin: Origin, *used: str) -> Demonstration:
    return Demonstration(*origin, messages=tuple(turns), meta=rest(row, *used))


def _opening(turns: Sequence[Message], row: Row, origin: Origin, *used: str) -> Prompt:
    """The conversation up to its last user message."""
    prompt = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return Prompt(*origin, prompt=tuple(prompt), meta=rest(row, *used))


# ---- ShareGPT: a list of {"from": .., "value": ..}, read in general/single.py


def is_sharegpt(row: Row) -> bool:
    turns = row["conversations"]
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


# ---- LIMA and UltraChat: a list of texts, starting with the user's


def turns_readers(column: str) -> dict[type, Reader]:
    def turns(row: Row) -> list[Message]:
        texts = check_list(row[column], column)
        return [
            Message("assistant" if i % 2 else "user", check_text(text, f"{column}[{i}]"))
            for i, text in enumerate(texts)
        ]

    def demonstration(row: Row, origin: Origin) -> Outcome:
        return _talk(turns(row), row, origin, column)

    def prompt(row: Row, origin: Origin) -> Outcome:
        return _opening(turns(row), row, origin, column)

    return {Demonstration: demonstration, Prompt: prompt}


def _is_texts(column: str) -> Any:
    return lambda row: isinstance(row[column], list) and bool(row[column]) and isinstance(row[column][0], str)


# ---- Guanaco: "### Human: .. ### Assistant: .." in one text, or with the last answer in a separate column

GUANACO_MARK = re.compile(r"###\s*(Human|Assistant):")


def is_guanaco_text(row: Row) -> bool:
    return isinstance(row["text"], str) and row["text"].lstrip().startswith("### Human:")


def _is_guanaco(row: Row) -> bool:
    return isinstance(row["input"], str) and row["input"].lstrip().startswith("### Human:")


def _guanaco(text: str, column: str) -> list[Message]:
    start, *parts = GUANACO_MARK.split(text)
    if start.strip() or not parts:
        raise DataError(f"'{column}' must start with '### Human:', found {describe(text)}", field=column)
    speakers, texts = parts[0::2], [part.strip() for part in parts[1::2]]
    if speakers[-1] == "Assistant" and not texts[-1]:  # the place for an answer
        speakers, texts = speakers[:-1], texts[:-1]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(roles[speaker], check_text(text, f"turn [{i}] of {column}"))
        for i, (speaker, text) in enumerate(zip(speakers, texts, strict=True))
    ]


def guanaco_demonstration(row: Row, origin: Origin) -> Outcome:
    if "input" in row:
        answer = Message("assistant", text_of(row, "output"))
        return _talk([*_guanaco(text_of(row, "input"), "input"), answer], row, origin, *GUANACO_COLUMNS)
    return _talk(_guanaco(text_of(row, "text"), "text"), row, origin, *GUANACO_COLUMNS)


def guanaco_prompt(row: Row, origin: Origin) -> Outcome:
    column = "input" if "input" in row else "text"
    return _opening(_guanaco(text_of(row, column), column), row, origin, *GUANACO_COLUMNS)


GUANACO_COLUMNS = ("input", "output", "text", "prompt")  # the last two repeat the first

# ---- OASST: trees of messages, or the same messages in a table


def _best_answer(node: dict[str, Any]) -> dict[str, Any] | None:
    """The best-ranked reply (0 is best); without ranks the first."""
    answers = [reply for reply in _replies(node) if reply.get("role") == "assistant"]
    ranked = [reply for reply in answers if reply.get("rank") is not None]
    for reply in ranked:
        if isinstance(reply["rank"], bool) or not isinstance(reply["rank"], int | float):
            raise DataError(f"'rank' must be a number from 0 (best), found {describe(reply['rank'])}", field="rank")
    return min(ranked, key=lambda reply: reply["rank"]) if ranked else next(iter(answers), None)


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The replies that people wrote and that passed review."""
    replies = check_list(node.get("replies") or [], "replies")
    return [reply for reply in replies if isinstance(reply, dict) and _is_human_and_passed(reply)]


def _is_human_and_passed(node: dict[str, Any]) -> bool:
    return not node.get("deleted") and not node.get("synthetic") and node.get("review_result") is not False


def _threads(node: dict[str, Any], before: tuple[Message, ...] = ()) -> Iterator[tuple[Message, ...]]:
    """Every path from this question to a last answer. It follows the best answers and branches at people's replies."""
    asked = (*before, Message("user", check_text(node.get("text"), "text")))
    answer = _best_answer(node)
    if answer is None:
        return
    answered = (*asked, Message("assistant", check_text(answer.get("text"), "text")))
    further = [t for reply in _replies(answer) if reply.get("role") == "prompter" for t in _threads(reply, answered)]
    yield from further or [answered]


def _tree(row: Row) -> dict[str, Any]:
    root = row.get("prompt")
    if isinstance(root, dict):
        return root
    if "prompt" in row:
        raise DataError(f"'prompt' must be a message with replies, found {describe(root)}", field="prompt")
    parent = row.get("parent_id")
    raise DataError(f"the message it replies to is missing from the data, found parent_id {parent}", field="parent_id")


def oasst_demonstrations(row: Row, origin: Origin) -> Outcome:
    root = _tree(row)
    meta = _oasst_meta(row, root)
    if row.get("tree_state") not in (None, "ready_for_export"):
        return Drop("tree not ready for export")
    if not _is_human_and_passed(root):
        return Drop("deleted, synthetic or not passed")
    threads = [
        Demonstration(*origin, messages=messages, group=_tree_id(row, root, origin), meta=meta)
        for messages in _threads(root)
    ]
    return threads or Drop("no answer that people wrote and passed")


def oasst_prompt(row: Row, origin: Origin) -> Outcome:
    """The question that opens the tree."""
    root = _tree(row)
    if not _is_human_and_passed(root):
        return Drop("deleted, synthetic or not passed")
    asked = Message("user", check_text(root.get("text"), "text"))
    return Prompt(*origin, prompt=(asked,), group=_tree_id(row, root, origin), meta=_oasst_meta(row, root))


def _tree_id(row: Row, root: dict[str, Any], origin: Origin) -> str:
    return str(row.get("message_tree_id") or root.get("message_id") or origin.id)


def _oasst_meta(row: Row, root: dict[str, Any]) -> dict[str, Any]:
    return rest(row, "prompt", "message_tree_id") | ({"lang": root["lang"]} if root.get("lang") else {})


def gather_trees(rows: NumberedRows) -> NumberedRows:
    """Trees, as in the export, from a table of messages in any order. A tree gets its first message's row number."""
    messages: dict[str, tuple[int, dict[str, Any]]] = {}
    replies: dict[str, list[str]] = {}
    for number, row in rows:
        if isinstance(row, DataError):
            yield number, row
        elif (name := str(row["message_id"])) in messages:
            yield number, DataError(f"'message_id' is that of another row, found {name}", field="message_id")
        else:
            messages[name] = number, dict(row)
            replies.setdefault(str(row.get("parent_id") or ""), []).append(name)
    reached: set[str] = set()

    def grown(name: str) -> dict[str, Any]:
        reached.add(name)
        return messages[name][1] | {"replies": [grown(reply) for reply in replies.get(name, [])]}

    for root in replies.get("", []):
        yield messages[root][0], {"message_tree_id": root, "prompt": grown(root)}
    yield from (messages[name] for name in messages if name not in reached)


def _is_tree(row: Row) -> bool:
    return isinstance(row["prompt"], dict) and "replies" in row["prompt"]


def _is_oasst_message(row: Row) -> bool:
    return row["role"] in ("prompter", "assistant") and ("parent_id" in row or "message_tree_id" in row)


OASST_COLUMNS = (
    *(
        "parent_id",
        "message_tree_id",
        "deleted",
        "rank",
        "synthetic",
        "review_result",
        "tree_state",
        "labels",
        "replies",
    ),
)
OASST_READERS: dict[type, Reader] = {
    Comparison: oasst_comparison,
    Demonstration: oasst_demonstrations,
    Prompt: oasst_prompt,
}

# ---- which format is which

DIALOGUE_FORMATS: dict[str, Format] = {
    "sharegpt": Format(frozenset({"conversations"}), is_sharegpt, TALK_READERS),
    "lima": Format(frozenset({"conversations"}), _is_texts("conversations"), turns_readers("conversations")),
    "ultrachat": Format(frozenset({"data"}), _is_texts("data"), turns_readers("data")),
    "guanaco": Format(
        frozenset({"input", "output"}),
        _is_guanaco,
        {Demonstration: guanaco_demonstration, Prompt: guanaco_prompt},
        reads=lambda row: ("rank", "text", "prompt"),  # the rank among the replies that people gave
    ),
    "oasst_tree": Format(frozenset({"message_tree_id", "prompt"}), _is_tree, OASST_READERS, judges=True),
    "oasst_messages": Format(
        frozenset({"message_id", "role", "text"}),
        _is_oasst_message,
        OASST_READERS,
        gather_trees,
        reads=lambda row: OASST_COLUMNS,
        judges=True,
    ),
}
