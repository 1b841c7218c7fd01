"""OpenAssistant's trees as comparisons: people ranked the replies to each message of a prompter, 0 being the best.

The conversation up to that message is the prompt. Replies that have no rank, were deleted or failed their review are
dropped and counted. Ranked replies that a model wrote are kept, since people ranked them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from data_schema.errors import DataError
from data_schema.formats.parts import Drop, Reader, Row
from data_schema.formats.ranking_parts import Ranking, group_of, object_of, objects_of, readers, value_of, why_unusable
from data_schema.records import Comparison, Message, describe

ROLES = {"prompter": "user", "assistant": "assistant"}


class Question(NamedTuple):
    prompt: tuple[Message, ...]
    message: Row
    replies: list[Row]


def _why_left_out(message: Row) -> str | None:
    if message.get("deleted"):
        return "deleted message"
    if message.get("review_result") is False:
        return "message failed its review"
    return why_unusable(value_of(message, "text"))


def _role(message: Row) -> str:
    role = value_of(message, "role")
    if role not in ROLES:
        raise DataError(f"'role' of a message must be prompter or assistant, found {describe(role)}", field="role")
    return ROLES[role]


def _questions(tree: Row) -> Iterator[Question | Drop]:
    """Depth first, as a reader would go; the messages below one that is dropped are left out with it."""
    if "prompt" not in tree:  # a message of a table that belongs to no tree
        parent = tree.get("parent_id")
        raise DataError(
            f"the message it replies to is missing from the data, found parent_id {parent}", field="parent_id"
        )
    if tree.get("tree_state") not in (None, "ready_for_export"):
        yield Drop("tree not ready for export")
        return
    waiting: list[tuple[tuple[Message, ...], Row]] = [((), object_of(tree, "prompt"))]
    while waiting:
        before, message = waiting.pop()
        if reason := _why_left_out(message):
            yield Drop(reason)
            continue
        if _role(message) != ("assistant" if len(before) % 2 else "user"):
            yield Drop("turns do not alternate")
            continue
        talk = (*before, Message(_role(message), message["text"]))
        replies = objects_of(message, "replies") if message.get("replies") else []
        if talk[-1].role == "user":
            yield Question(talk, message, replies)
        waiting += [(talk, reply) for reply in reversed(replies)]


def _ranking(tree: Row, question: Question, replies: list[Row]) -> Ranking:
    ranks = [reply.get("rank") for reply in replies]
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
            raise DataError(f"'rank' must be a number from 0 (best), found {describe(rank)}", field="rank")
    meta = {key: question.message[key] for key in ("message_id", "lang") if question.message.get(key) is not None}
    return Ranking(
        question.prompt,
        [value_of(reply, "text") for reply in replies],
        [None if rank is None else -float(rank) for rank in ranks],
        meta,
        group=group_of(value_of(tree, "message_tree_id")),
    )


def _answers(question: Question) -> list[Row]:
    return [reply for reply in question.replies if not _why_left_out(reply) and _role(reply) == "assistant"]


def _comparisons(tree: Row) -> list[Ranking | Drop]:
    """The ranked replies to each message that has two or more."""
    out: list[Ranking | Drop] = []
    for question in _questions(tree):
        if isinstance(question, Drop):
            out.append(question)
        elif len(replies := _answers(question)) > 1:
            out.append(_ranking(tree, question, replies))
    return out


oasst_comparison: Reader = readers(_comparisons)[Comparison]
