"""Comparisons that span rows. A row of SHP has a pair, of HelpSteer a rating, of KTO an answer marked good or bad."""

from typing import Any

from data_schema.errors import DataError
from data_schema.formats.alpaca import alpaca_turns
from data_schema.formats.dialogues import sharegpt_messages
from data_schema.formats.pairs import helpsteer_turns
from data_schema.formats.parts import Drop, Gather, Origin, Outcome, Reader, Row, prompt_of, rest, text_of
from data_schema.formats.ranking_parts import (
    GATHERED,
    Ranking,
    gather_by,
    gathered,
    group_of,
    number_of,
    readers,
    value_of,
    why_unusable,
)
from data_schema.records import Comparison, Demonstration, Message, Prompt, check_list, describe, parse_messages

# ---- SHP


def _shp_answers(row: Row) -> dict[tuple[object, float], object]:
    """{(comment, its score): its text} of both answers."""
    out = {}
    for side in "AB":
        text = value_of(row, f"human_ref_{side}")
        out[row.get(f"c_root_id_{side}", text), number_of(row, f"score_{side}")] = text
    return out


def _shp_key(row: Row) -> str:
    _shp_answers(row)
    text_of(row, "history")
    return str(row["post_id"])


def shp(row: Row) -> Ranking:
    """All comments on a post, ranked by votes. A comment occurs in many pairs and becomes one answer."""
    answers: dict[tuple[object, float], object] = {}
    for pair in gathered(row):
        answers |= _shp_answers(pair)
    return Ranking(
        (Message("user", text_of(row, "history")),),
        list(answers.values()),
        [score for _, score in answers],
        {key: row[key] for key in ("domain", "upvote_ratio") if row.get(key) is not None},
        group=group_of(row["post_id"]),
    )


gather_shp: Gather = gather_by(_shp_key)


# ---- HelpSteer


def _helpsteer_key(row: Row) -> str:
    number_of(row, "helpfulness")
    value_of(row, "response")
    return text_of(row, "prompt")


def helpsteer(row: Row) -> Ranking | Drop:
    """All answers to a prompt, ranked by helpfulness; the other ratings stay in meta."""
    prompt = helpsteer_turns(row)
    if isinstance(prompt, Drop):
        return prompt
    rows = gathered(row)
    scores = [number_of(rated, "helpfulness") for rated in rows]
    meta = {"ratings": [rest(rated, "prompt", "response") for rated in rows]}
    return Ranking(prompt, [value_of(rated, "response") for rated in rows], scores, meta)


gather_helpsteer: Gather = gather_by(_helpsteer_key)


# ---- KTO: one answer per row, marked good or bad

KTO_COLUMNS = ("label", "tag", "kto_tag")


MARKS = {True: True, False: False, "true": True, "false": False}  # CSV has only texts


def _marks(row: Row) -> list[bool]:
    """The marks that a row's columns give its answer: usually one; none if the columns have other values."""
    values = [row.get(column) for column in KTO_COLUMNS]
    words = [value.strip().lower() if isinstance(value, str) else value for value in values]
    return [MARKS[word] for word in words if isinstance(word, bool | str) and word in MARKS]


def is_judged(row: Row) -> bool:
    return bool(_marks(row))


def _kto_parts(row: Row) -> tuple[tuple[Message, ...], object, bool]:
    """(prompt, answer, whether it is good) of any of the four column sets."""
    marks = _marks(row)
    if not marks:
        found = next((row[column] for column in KTO_COLUMNS if column in row), None)
        raise DataError(f"'label' must be true or false, found {describe(found)}", field="label")
    if "instruction" in row:
        return alpaca_turns(row), value_of(row, "output"), marks[0]
    if "completion" in row:
        answer = row["completion"]
        return prompt_of(row), _last(answer, "completion", "content") if isinstance(answer, list) else answer, marks[0]
    if "messages" in row:
        answer = _last(row["messages"], "messages", "content")
        return parse_messages(row["messages"][:-1], "messages"), answer, marks[0]
    answer = _last(row["conversations"], "conversations", "value")
    return sharegpt_messages(row["conversations"][:-1], "conversations"), answer, marks[0]


def _last(turns: object, column: str, key: str) -> object:
    """The content of the last turn, which may be unusable."""
    last = check_list(turns, column)[-1:]
    if not last or not isinstance(last[0], dict) or key not in last[0]:
        raise DataError(f"'{column}' must end with an answer that has '{key}', found {describe(turns)}", field=column)
    return last[0][key]


def _kto_meta(row: Row) -> dict[str, Any]:
    texts = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history")
    return rest(row, *texts, *KTO_COLUMNS, GATHERED)


def kto(row: Row) -> Ranking | list[Drop]:
    """A prompt's good answers, ranked above its bad ones. A prompt with only one kind gives no comparison."""
    parts = [_kto_parts(judged) for judged in gathered(row)]
    if len({good for *_, good in parts}) == 1:
        return [Drop("unpaired answer")] * len(parts)
    scores = [1.0 if good else 0.0 for *_, good in parts]
    return Ranking(parts[0][0], [answer for _, answer, _ in parts], scores, _kto_meta(row))


def kto_good(row: Row, origin: Origin) -> Outcome:
    """The good answers as demonstrations."""
    outcome: list[Demonstration | Drop] = []
    for number, judged in enumerate(gathered(row), start=1):
        prompt, answer, good = _kto_parts(judged)
        place = Origin(origin.id if number == 1 else f"{origin.id}.{number}", origin.source)
        if reason := why_unusable(answer) if good else "answer marked bad":
            outcome.append(Drop(reason))
        else:
            messages = (*prompt, Message("assistant", str(answer)))
            outcome.append(Demonstration(*place, messages=messages, meta=_kto_meta(judged)))
    return outcome


def _kto_prompt(row: Row) -> Ranking:
    return Ranking(_kto_parts(row)[0], [], [], _kto_meta(row))


KTO_READERS: dict[type, Reader] = {
    Comparison: readers(kto)[Comparison],
    Demonstration: kto_good,
    Prompt: readers(_kto_prompt)[Prompt],
}
gather_kto: Gather = gather_by(lambda row: _kto_parts(row)[0])
