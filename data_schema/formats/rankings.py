"""Several answers in one row: Nectar, UltraFeedback, QA-Feedback, RewardBench 2."""

from itertools import combinations

from data_schema.errors import DataError
from data_schema.formats.alpaca import alpaca_turns
from data_schema.formats.meaning import number
from data_schema.formats.parts import Drop, Origin, Outcome, Row, prompt_of, rest, text_of
from data_schema.formats.preference import hh_transcript
from data_schema.formats.ranking_parts import Ranking, number_of, objects_of, value_of
from data_schema.records import Comparison, Message, Prompt, check_list, describe


def nectar(row: Row) -> Ranking | Drop:
    """The prompt is a transcript like HH-RLHF's that ends at the assistant's turn."""
    answers = objects_of(row, "answers")
    meta = {
        **rest(row, "prompt", "answers", "num_responses"),
        "models": [answer.get("model") for answer in answers],
        "ranks": [answer.get("rank") for answer in answers],
    }
    prompt: tuple[Message, ...] | Drop = (Message("user", text_of(row, "prompt")),)
    if row["prompt"].startswith("\n\nHuman:"):
        transcript = hh_transcript(row["prompt"])
        prompt = transcript if isinstance(transcript, Drop) else transcript[0]
    if isinstance(prompt, Drop):
        return prompt
    scores = [-number_of(answer, "rank") for answer in answers]
    return Ranking(prompt, [value_of(answer, "answer") for answer in answers], scores, meta)


def _mean_rating(completion: Row) -> float | None:
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else []
    ratings = [str(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    numbers = [float(rating) for rating in ratings if rating.replace(".", "", 1).isdecimal()]  # others are "N/A"
    return sum(numbers) / len(numbers) if numbers else _score(completion, "fine-grained_score")


def _score(completion: Row, column: str) -> float | None:
    return None if completion.get(column) is None else number_of(completion, column)


def ultrafeedback(row: Row) -> Ranking:
    """Ranked by mean rating, since some thousand overall scores were published as a wrong 10; else by overall score."""
    completions = objects_of(row, "completions")
    scores = [_mean_rating(completion) for completion in completions]
    overall = [_score(completion, "overall_score") for completion in completions]
    if overall.count(None) < scores.count(None):  # their scales differ: use one for all answers
        scores = overall
    meta = {
        **rest(row, "instruction", "completions", "models"),
        "models": [completion.get("model") for completion in completions],
        "scores": scores,
    }
    answers = [value_of(completion, "response") for completion in completions]
    return Ranking(alpaca_turns({"instruction": value_of(row, "instruction")}), answers, scores, meta)


def _qa_prompt(row: Row) -> tuple[Message, ...]:
    """Question and passages on one line, as FineGrainedRLHF gives them to its reward model."""
    parts = ["question:", text_of(row, "question")]
    for i, passage in enumerate(check_list(value_of(row, "passages"), "passages")):
        if not isinstance(passage, list) or not passage or not all(isinstance(text, str) for text in passage):
            raise DataError(
                f"'passages[{i}]' must be a title and its sentences, found {describe(passage)}", field="passages"
            )
        title, *sentences = passage
        parts += [*([] if i else ["context:"]), "wikipage:", title, "text:", *sentences]
    return (Message("user", " ".join(" ".join([*parts, "answer:"]).split())),)


def weak_order(verdicts: list[int], n_answers: int) -> list[float] | None:
    """Scores that agree with all verdicts (0 equal, 1 first better, 2 second) on pairs 1v2, 1v3, .., or None.

    In a weak order, wins minus losses sort the answers in that order, so only this candidate has to be checked."""
    pairs = list(combinations(range(n_answers), 2))
    scores = [0.0] * n_answers
    for (i, j), verdict in zip(pairs, verdicts, strict=True):
        step = {0: 0, 1: 1, 2: -1}[verdict]
        scores[i] += step
        scores[j] -= step
    fits = all(
        verdict == (0 if scores[i] == scores[j] else 1 if scores[i] > scores[j] else 2)
        for (i, j), verdict in zip(pairs, verdicts, strict=True)
    )
    return scores if fits else None


def qa_feedback(row: Row) -> Ranking:
    answers: list[object] = []
    while (column := f"prediction {len(answers) + 1}") in row:
        answers.append(row[column])
    verdicts = check_list(row["preference"], "preference")
    n_pairs = len(answers) * (len(answers) - 1) // 2
    if len(verdicts) != n_pairs or any(type(verdict) is not int or not 0 <= verdict <= 2 for verdict in verdicts):
        raise DataError(f"'preference' must be {n_pairs} of 0, 1, 2, found {verdicts}", field="preference")
    scores = weak_order(verdicts, len(answers))
    meta = rest(row, "question", "passages", *(f"prediction {i + 1}" for i in range(len(answers))))
    if scores is None:
        return Ranking(_qa_prompt(row), answers, [0.0] * len(answers), meta, unclear="verdicts fit no order")
    return Ranking(_qa_prompt(row), answers, scores, meta)


def is_reward_bench_2(row: Row) -> bool:
    if not isinstance(row["chosen"], list) or not isinstance(row["rejected"], list):
        return False
    return all(row[column] and all(isinstance(text, str) for text in row[column]) for column in ("chosen", "rejected"))


def reward_bench_2(row: Row) -> Ranking:
    """Ranks a list of right answers above a list of wrong ones."""
    chosen, rejected = check_list(row["chosen"], "chosen"), check_list(row["rejected"], "rejected")
    scores = [1.0] * len(chosen) + [0.0] * len(rejected)
    return Ranking(prompt_of(row), [*chosen, *rejected], scores, rest(row, "prompt", "chosen", "rejected"))


# ---- our own columns


def _whole(rank: object) -> object:
    """A rank as a whole number, if it is written as 1.0 or as text; anything else as it is."""
    value = number(rank)
    return int(value) if value is not None and value == int(value) else rank


def ranked_comparison(row: Row, origin: Origin) -> Outcome:
    responses = check_list(row["responses"], "responses")
    ranks = [_whole(rank) for rank in check_list(row["ranks"], "ranks")]
    if 0 in ranks:  # counted from 0
        ranks = [rank + 1 if type(rank) is int else rank for rank in ranks]
    meta = rest(row, "prompt", "responses", "ranks", "margin", "labeler", "group")
    return Comparison(
        *origin,
        prompt=prompt_of(row),
        responses=tuple(responses),
        ranks=tuple(ranks),  # type: ignore[arg-type]  # Comparison checks them
        labeler=row.get("labeler"),
        margin=row.get("margin"),
        group=row.get("group"),
        meta=meta,
    )


def ranked_prompt(row: Row, origin: Origin) -> Outcome:
    meta = rest(row, "prompt", "responses", "ranks", "margin", "labeler", "group")
    return Prompt(*origin, prompt=prompt_of(row), group=row.get("group"), meta=meta)
