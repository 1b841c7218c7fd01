"""Published comparison data sets: the columns that identify them, and their readers. Part of FORMATS in table.py."""

from collections.abc import Callable
from typing import Any

from data_schema.formats import gathered, pairs, rankings
from data_schema.formats.parts import Format, Gather, Row
from data_schema.formats.ranking_parts import Read, readers

Fits = Callable[[Row], bool]


def _any(row: Row) -> bool:
    return True


def _holds(column: str, kind: type) -> Fits:
    return lambda row: isinstance(row[column], kind)


def _holds_objects(column: str, key: str) -> Fits:
    """Rows whose `column` is a list of objects that have `key`."""

    def fits(row: Row) -> bool:
        items: Any = row[column]
        return isinstance(items, list) and bool(items) and all(isinstance(item, dict) and key in item for item in items)

    return fits


def _format(*columns: str, read: Read, fits: Fits = _any, gather: Gather | None = None) -> Format:
    return Format(frozenset(columns), fits, readers(read), gather)


def _kto(*columns: str) -> Format:
    return Format(frozenset(columns), gathered.is_judged, gathered.KTO_READERS, gathered.gather_kto)


# The first format that fits a row wins, so those that need more columns come before those that need fewer.
COMPARISON_FORMATS: dict[str, Format] = {
    "tldr_comparisons": _format("info", "summaries", "choice", read=pairs.tldr_comparisons),
    "webgpt": _format(
        "question", "answer_0", "answer_1", "score_0", "score_1", read=pairs.webgpt, fits=_holds("question", dict)
    ),
    "shp": _format(
        "post_id",
        "history",
        "human_ref_A",
        "human_ref_B",
        "score_A",
        "score_B",
        read=gathered.shp,
        gather=gathered.gather_shp,
    ),
    "helpsteer": _format(
        "prompt", "response", "helpfulness", read=gathered.helpsteer, gather=gathered.gather_helpsteer
    ),
    "helpsteer2_preference": _format(
        "prompt", "response_1", "response_2", "preference_strength", read=pairs.helpsteer2_preference
    ),
    "ultrafeedback": _format(
        "instruction", "completions", read=rankings.ultrafeedback, fits=_holds_objects("completions", "response")
    ),
    "nectar": _format("prompt", "answers", read=rankings.nectar, fits=_holds_objects("answers", "rank")),
    "qa_feedback": _format(
        "question", "passages", "prediction 1", "prediction 2", "preference", read=rankings.qa_feedback
    ),
    "alpaca_eval": _format("instruction", "output_1", "output_2", "preference", read=pairs.alpaca_eval),
    "llmbar": _format("input", "output_1", "output_2", "label", read=pairs.llmbar),
    "pandalm": _format("instruction", "response1", "response2", "annotator1", read=pairs.pandalm),
    # Like pandalm, but with one comparison per labeler. It is only used if named.
    "pandalm_votes": _format("instruction", "response1", "response2", "annotator1", read=pairs.pandalm_votes),
    "autoj": _format("prompt", "response 1", "response 2", "label", read=pairs.autoj),
    "tulu_human": _format("prompt", "completion_a", "completion_b", "preference", read=pairs.tulu_human),
    "bpo": _format("prompt", "good_res", "bad_res", read=pairs.bpo),
    "bpo_instruction": _format("instruction", "good_res", "bad_res", read=pairs.bpo),
    "stack_exchange_paired": _format("question", "response_j", "response_k", read=pairs.stack_exchange_paired),
    "sharegpt_preference": _format(
        "conversations", "chosen", "rejected", read=pairs.sharegpt_preference, fits=_holds("chosen", dict)
    ),
    "reward_bench_2": _format(
        "prompt", "chosen", "rejected", read=rankings.reward_bench_2, fits=rankings.is_reward_bench_2
    ),
    "scored_preference": _format("chosen", "rejected", read=pairs.scored_preference, fits=pairs.has_pair_scores),
    "kto_messages": _kto("messages"),
    "kto": _kto("prompt", "completion"),
    "kto_alpaca": _kto("instruction", "output"),
    "kto_sharegpt": _kto("conversations"),
}
