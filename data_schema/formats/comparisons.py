"""Published comparison data sets: the columns that identify them, and their readers. Part of FORMATS in table.py."""

from collections.abc import Callable, Collection
from typing import Any

from data_schema.formats import gathered, pairs, rankings
from data_schema.formats.alpaca import instruction_readers
from data_schema.formats.general import choices, duels, lists, marked
from data_schema.formats.general.single import read_by_single
from data_schema.formats.meaning import meanings, ratings, verdicts
from data_schema.formats.parts import Format, Gather, Row
from data_schema.formats.ranking_parts import Read, readers

Fits = Callable[[Row], bool]


def _any(row: Row) -> bool:
    return True


def _never(row: Row) -> bool:
    return False


def _is_sharegpt_turn(row: Row) -> bool:
    return isinstance(row["chosen"], dict) and "from" in row["chosen"]


def _holds(column: str, kind: type) -> Fits:
    return lambda row: isinstance(row[column], kind)


def _holds_objects(column: str, key: str) -> Fits:
    """Rows whose `column` is a list of objects that have `key`."""

    def fits(row: Row) -> bool:
        items: Any = row[column]
        return isinstance(items, list) and bool(items) and all(isinstance(item, dict) and key in item for item in items)

    return fits


def _always_nothing(columns: tuple[str, ...]) -> Collection[str]:
    return ()


def _nothing_else(row: Row) -> Collection[str]:
    return ()


def _alpaca_columns(row: Row) -> tuple[str, ...]:
    return ("input", "history")


def _format(
    *columns: str,
    read: Read,
    fits: Fits = _any,
    gather: Gather | None = None,
    reads: Callable[[Row], Collection[str]] = _nothing_else,
    always_reads: Callable[[tuple[str, ...]], Collection[str]] = _always_nothing,
    may_be: Callable[[tuple[str, ...]], object] = bool,
) -> Format:
    return Format(frozenset(columns), fits, readers(read), gather, reads, True, always_reads, may_be)


def _kto(*columns: str) -> Format:
    return Format(
        frozenset(columns),
        marked.is_marked,
        marked.MARKED_READERS,
        marked.gather_marked,
        _marked_columns,
        judges=True,
        may_be=marked.judging_columns,
    )


def _marked_columns(row: Row) -> tuple[str, ...]:
    return (*read_by_single(row), *verdicts(row, read_by_single(row)))


def _rated_columns(row: Row) -> tuple[str, ...]:
    return (*read_by_single(row), *ratings(row, read_by_single(row)))


def _duel_columns(row: Row) -> tuple[str, ...]:
    return (*duels.read_by_duel(row), *(column for column in row if "better" in meanings(column)))


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
        reads=lambda row: ("labels",),
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
    "alpaca_eval": _format(
        "instruction", "output_1", "output_2", "preference", read=pairs.alpaca_eval, reads=_alpaca_columns
    ),
    "llmbar": _format("input", "output_1", "output_2", "label", read=pairs.llmbar),
    "pandalm": _format(
        "instruction", "response1", "response2", "annotator1", read=pairs.pandalm, reads=_alpaca_columns
    ),
    # Like pandalm, but with one comparison per labeler. It is only used if named.
    "pandalm_votes": _format(
        "instruction", "response1", "response2", "annotator1", read=pairs.pandalm_votes, reads=_alpaca_columns
    ),
    "autoj": _format("prompt", "response 1", "response 2", "label", read=pairs.autoj),
    "tulu_human": _format("prompt", "completion_a", "completion_b", "preference", read=pairs.tulu_human),
    "bpo": _format("prompt", "good_res", "bad_res", read=pairs.bpo),
    "bpo_instruction": _format(
        "instruction", "good_res", "bad_res", read=pairs.bpo, reads=lambda row: ("context", "history")
    ),
    "stack_exchange_paired": _format("question", "response_j", "response_k", read=pairs.stack_exchange_paired),
    "sharegpt_preference": _format(
        "conversations", "chosen", "rejected", read=pairs.sharegpt_preference, fits=_is_sharegpt_turn
    ),
    "reward_bench_2": _format(
        "prompt", "chosen", "rejected", read=rankings.reward_bench_2, fits=rankings.is_reward_bench_2
    ),
    "scored_preference": _format(
        "chosen",
        "rejected",
        read=choices.scored,
        fits=choices.has_ratings,
        reads=choices.read_by_choice,
        always_reads=choices.always_read_by_choice,
    ),
    "prometheus": Format(
        frozenset(
            {"orig_instruction", "orig_response_A", "orig_response_B", "orig_preference", "instruction", "output"}
        ),
        _any,
        readers(duels.duel) | instruction_readers("input", "output"),
        reads=_duel_columns,
        judges=True,
    ),
    "safe_rlhf": _format(
        *("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        read=duels.duel,
        reads=_duel_columns,
    ),
    # Like safe_rlhf, but by one of the two verdicts. They are only used if named.
    "safe_rlhf_better": _format(
        *("prompt", "response_0", "response_1", "better_response_id"),
        read=duels.without("safer_response_id"),
        fits=_never,
        reads=_duel_columns,
    ),
    "safe_rlhf_safer": _format(
        *("prompt", "response_0", "response_1", "safer_response_id"),
        read=duels.without("better_response_id"),
        fits=_never,
        reads=_duel_columns,
    ),
    "kto_messages": _kto("messages"),
    "kto": _kto("prompt", "completion"),
    "kto_alpaca": _kto("instruction", "output"),
    "kto_sharegpt": _kto("conversations"),
}

# These ask what the columns mean. They come after the formats with names of their own.
GENERAL_COMPARISONS: dict[str, Format] = {
    "choice": _format(
        read=choices.choice,
        fits=choices.is_choice,
        reads=choices.read_by_choice,
        always_reads=choices.always_read_by_choice,
        may_be=choices.find_choice,
    ),
    "duel": _format(read=duels.duel, fits=duels.is_duel, reads=_duel_columns, may_be=duels.find_duel),
    "listed": _format(read=lists.listed, fits=lists.is_listed, reads=lists.read_by_list, may_be=lists.list_columns),
    "kto_pair": _kto(),
    "rated": Format(
        frozenset(),
        marked.is_rated,
        marked.RATED_READERS,
        marked.gather_rated,
        _rated_columns,
        judges=True,
        may_be=marked.judging_columns,
    ),
}
