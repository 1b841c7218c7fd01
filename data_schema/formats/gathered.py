"""Comparisons that span rows: a row of SHP has a pair, of HelpSteer a rating. Others: general/single.py."""

from data_schema.formats.pairs import helpsteer_turns
from data_schema.formats.parts import Drop, Gather, Row, rest, text_of
from data_schema.formats.ranking_parts import Ranking, gather_by, gathered, group_of, number_of, value_of
from data_schema.records import Message

# ---- SHP


def _shp_answers(row: Row) -> dict[tuple[object, float], object]:
    """{(comment, its score): its text} of both answers."""
    out: dict[tuple[object, float], object] = {}
    for side in "AB":
        text = value_of(row, f"human_ref_{side}")
        out[str(row.get(f"c_root_id_{side}", text)), number_of(row, f"score_{side}")] = text
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
