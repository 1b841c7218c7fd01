"""Two answers and a verdict in one row: AlpacaEval, PandaLM, Auto-J, LLMBar, BPO, WebGPT, TL;DR and others."""

import math
import re
from collections import Counter
from typing import Any

from data_schema.errors import DataError
from data_schema.formats.alpaca import alpaca_turns
from data_schema.formats.general.columns import spoken
from data_schema.formats.general.turns import SPEAKERS, parse_turns
from data_schema.formats.parts import Drop, Row, rest, text_of
from data_schema.formats.ranking_parts import (
    FIRST,
    SECOND,
    TIE,
    Ranking,
    group_of,
    number_of,
    object_of,
    objects_of,
    one_of,
    value_of,
)
from data_schema.records import Message, check_text, describe

VERDICTS = {0: TIE, 1: FIRST, 2: SECOND}


def user(row: Row, column: str) -> tuple[Message, ...]:
    return spoken(text_of(row, column), column)


def two(row: Row, first: str, second: str) -> tuple[Any, Any]:
    return value_of(row, first), value_of(row, second)


# ---- a verdict of 0, 1 or 2


def alpaca_eval(row: Row) -> Ranking:
    """AlpacaFarm and AlpacaEval. A fraction says how sure the judge was of the second answer; 1.5 is undecided."""
    meta = rest(row, "instruction", "input", "output_1", "output_2")
    prompt, answers = alpaca_turns(row), two(row, "output_1", "output_2")
    preference = value_of(row, "preference")
    if preference is None or (isinstance(preference, float) and math.isnan(preference)):
        return Ranking(prompt, answers, TIE, meta, unclear="no verdict")
    preference = number_of(row, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise DataError(f"'preference' must be 0 or from 1 to 2, found {preference:g}", field="preference")
    scores = TIE if preference in (0, 1.5) else FIRST if preference < 1.5 else SECOND
    return Ranking(prompt, answers, scores, meta)


def autoj(row: Row) -> Ranking:
    scores = one_of(row, "label", {0: FIRST, 1: SECOND, 2: TIE})
    meta = rest(row, "prompt", "response 1", "response 2", "label")
    return Ranking(user(row, "prompt"), two(row, "response 1", "response 2"), scores, meta)


def llmbar(row: Row) -> Ranking:
    scores = one_of(row, "label", {1: FIRST, 2: SECOND})
    meta = rest(row, "input", "output_1", "output_2", "label")
    return Ranking(user(row, "input"), two(row, "output_1", "output_2"), scores, meta)


def _pandalm_votes(row: Row) -> dict[str, tuple[float, float]]:
    """{labeler: scores of the two answers}."""
    columns = [column for column in row if re.fullmatch(r"annotator\d+", column) and row[column] is not None]
    return {column: one_of(row, column, VERDICTS) for column in columns}


def pandalm(row: Row) -> Ranking:
    """The verdict of more than half of the labelers; all votes stay in meta."""
    votes = _pandalm_votes(row)
    scores, count = Counter(votes.values()).most_common(1)[0] if votes else (TIE, 0)
    unclear = None if 2 * count > len(votes) else "no majority"
    meta = rest(row, "instruction", "input", "response1", "response2")
    return Ranking(alpaca_turns(row), two(row, "response1", "response2"), scores, meta, unclear=unclear)


def pandalm_votes(row: Row) -> list[Ranking | Drop]:
    """One comparison per labeler."""
    votes = _pandalm_votes(row)
    meta = rest(row, "instruction", "input", "response1", "response2", *votes)
    answers = two(row, "response1", "response2")
    return [Ranking(alpaca_turns(row), answers, scores, meta, labeler=name) for name, scores in votes.items()]


# ---- verdicts in other words

TULU_GRADES = {
    "a-is-better": FIRST,
    "a-is-slightly-better": FIRST,
    "tie": TIE,
    "b-is-slightly-better": SECOND,
    "b-is-better": SECOND,
    **dict.fromkeys(("a", "A", "completion_a"), FIRST),
    **dict.fromkeys(("b", "B", "completion_b"), SECOND),
}


def tulu_human(row: Row) -> Ranking:
    scores = one_of(row, "preference", TULU_GRADES)
    meta = rest(row, "prompt", "completion_a", "completion_b", "evaluator")
    labeler = group_of(row.get("evaluator"))
    return Ranking(user(row, "prompt"), two(row, "completion_a", "completion_b"), scores, meta, labeler=labeler)


HELPSTEER_MARK = re.compile(r"\s*<extra_id_1>(User|Assistant)\s*")


def helpsteer_turns(row: Row) -> tuple[Message, ...] | Drop:
    """HelpSteer2 puts longer conversations into `prompt`, with a mark before each turn except the first."""
    first, *parts = HELPSTEER_MARK.split(text_of(row, "prompt"))
    speakers, texts = ["User", *parts[0::2]], [first, *parts[1::2]]
    if speakers != ["User" if i % 2 == 0 else "Assistant" for i in range(len(speakers))] or len(speakers) % 2 == 0:
        return Drop("turns do not alternate")
    if not all(text.strip() for text in texts):
        return Drop("empty turn")
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def helpsteer2_preference(row: Row) -> Ranking | Drop:
    """Strengths from -3 (the first is much better) to 3 (the second is much better)."""
    strength = number_of(row, "preference_strength")
    prompt = helpsteer_turns(row)
    if isinstance(prompt, Drop):
        return prompt
    meta = rest(row, "prompt", "response_1", "response_2")
    return Ranking(prompt, two(row, "response_1", "response_2"), (-strength, strength), meta)


# ---- the better answer has a column of its own


def bpo(row: Row) -> Ranking:
    """The answers belong to the prompt before it was optimised."""
    meta = rest(row, "prompt", "instruction", "context", "good_res", "bad_res")
    prompt = user(row, "prompt") if "prompt" in row else alpaca_turns(row, "context")
    return Ranking(prompt, two(row, "good_res", "bad_res"), FIRST, meta)


def stack_exchange_paired(row: Row) -> Ranking:
    meta = rest(row, "question", "response_j", "response_k")
    answers = two(row, "response_j", "response_k")
    return Ranking(user(row, "question"), answers, FIRST, meta, group=group_of(row.get("qid")))


def _sharegpt_answer(row: Row, column: str) -> object:
    turn = object_of(row, column)
    if SPEAKERS.get(str(turn.get("from"))) != "assistant":
        raise DataError(f"'{column}.from' must be gpt, found {describe(turn.get('from'))}", field=column)
    return value_of(turn, "value")


def sharegpt_preference(row: Row) -> Ranking:
    """LLaMA-Factory's form: a ShareGPT conversation, and two candidates for the last turn."""
    prompt = parse_turns(row["conversations"], "conversations")
    answers = _sharegpt_answer(row, "chosen"), _sharegpt_answer(row, "rejected")
    return Ranking(prompt, answers, FIRST, rest(row, "conversations", "chosen", "rejected"))


# ---- OpenAI's


def tldr_prompt(info: Row) -> tuple[Message, ...]:
    """A post in the form of Stiennon et al. 2020; CNN/DM has articles instead (summarize-from-feedback)."""
    missing = [key for key in ("subreddit", "title", "post") if not isinstance(info.get(key), str)]
    if isinstance(info.get("article"), str):
        text = f"Article:\n\n{info['article']}\n\nTL;DR:"
    elif missing:
        raise DataError(f"'info' has no text '{missing[0]}', only {', '.join(info) or 'nothing'}", field="info")
    else:
        text = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
    return (Message("user", text),)


def tldr_comparisons(row: Row) -> Ranking:
    info, summaries = object_of(row, "info"), objects_of(row, "summaries")
    if len(summaries) != 2:
        raise DataError(f"'summaries' must have two, found {len(summaries)}", field="summaries")
    texts = [value_of(summary, "text") for summary in summaries]
    meta = {
        **rest(row, "info", "summaries", "choice", "worker"),
        "policies": [summary.get("policy") for summary in summaries],
    }
    return Ranking(
        tldr_prompt(info),
        # The space before them is for GPT-2; here, templates define what comes between prompt and answer.
        [text.strip() if isinstance(text, str) else text for text in texts],
        one_of(row, "choice", {0: FIRST, 1: SECOND}),
        meta,
        group=group_of(info.get("id")),
        labeler=group_of(row.get("worker")),
    )


def webgpt(row: Row) -> Ranking:
    """Scores from -1 to 1. `tokens_*` repeat the prompts and answers as GPT-2 token ids."""
    question = object_of(row, "question")
    meta = rest(row, "question", "answer_0", "answer_1", "tokens_0", "tokens_1")
    return Ranking(
        (Message("user", check_text(question.get("full_text"), "question.full_text")),),
        two(row, "answer_0", "answer_1"),
        (number_of(row, "score_0"), number_of(row, "score_1")),
        meta,
        group=group_of(question.get("id")),
    )
