"""Which of two answers in a row is better, however a data set writes it."""

import re
from functools import lru_cache
from typing import NamedTuple

from data_schema.errors import DataError
from data_schema.formats.meaning import TIES, is_empty, meanings, number, plain, shown, verdict_of, word
from data_schema.formats.parts import Row
from data_schema.formats.ranking_parts import FIRST, SECOND, TIE

_ANSWER = (
    r"(?:orig_|assistant_|model_|full_)?(?:response|answer|output|completion|reply|generation|candidate|conversation|conv|"
    r"chat|summary|story|continuation|prediction|assistant|text|resp)"
)
_SIDES = (("a", "b"), ("0", "1"), ("1", "2"), ("left", "right"), ("x", "y"), ("first", "second"))
_AFTER = re.compile(rf"({_ANSWER})_?(a|b|0|1|2|left|right|x|y)")
_BEFORE = re.compile(rf"(?:model_|assistant_|system_|option_)?(a|b|1|2|left|right|first|second)_({_ANSWER})")
THIRD = {"a": "c", "0": "2", "1": "3"}
_SCORE = "score|rating|reward|grade|quality|overall|points|votes|overall_score|avg_rating|average_rating"
SIGNED = ("overall_preference", "preference_strength")  # below 0: the first is better


class Duel(NamedTuple):
    """The columns of the two answers, and what a verdict calls them."""

    answers: tuple[str, str]
    sides: tuple[str, str]


@lru_cache(maxsize=1024)
def find_duel(columns: tuple[str, ...]) -> Duel | None:
    """None unless there are exactly two columns of answers that differ in their side only."""
    found: dict[tuple[str, str], str] = {}
    for column in columns:
        name = plain(column)
        if match := _AFTER.fullmatch(name):
            found.setdefault((match[1], match[2]), column)
        elif match := _BEFORE.fullmatch(name):
            found.setdefault((match[2], match[1]), column)
    duels = []
    for stem in dict.fromkeys(stem for stem, _ in found):
        for one, two in _SIDES:
            if (stem, one) in found and (stem, two) in found and (stem, THIRD.get(one)) not in found:
                duels.append(Duel((found[stem, one], found[stem, two]), (one, two)))
                break
    return duels[0] if len(duels) == 1 else None


def _side_of(value: object, column: str, duel: Duel, row: Row) -> tuple[float, float] | None:
    """The scores that a verdict gives the two answers; None if it cannot be understood."""
    if (said := number(value)) is not None:
        if plain(column) in SIGNED:
            return TIE if said == 0 else FIRST if said < 0 else SECOND
        if plain(column).endswith(("_index", "_idx")) and duel.sides != ("1", "2"):
            return {0: FIRST, 1: SECOND}.get(int(said)) if said in (0, 1) else None
        sides = {
            float(side): scores for side, scores in zip(duel.sides, (FIRST, SECOND), strict=True) if side.isdecimal()
        }
        return sides.get(said)
    if not isinstance(value, str):
        return None
    same = [row[column] == value for column in duel.answers]
    if same[0] != same[1]:
        return FIRST if same[0] else SECOND
    text = re.sub(r"[\[\]()\"'*]", " ", value).strip().lower()
    if plain(text) in TIES or plain(text).startswith("tie_"):
        return TIE
    if value.strip() == "[[C]]":
        return TIE
    if compared := re.fullmatch(r"(.+?)\s*(>+|<+|=+|\N{ALMOST EQUAL TO}|~)\s*(.+)", text):
        one, sign, two = compared.groups()
        order = [_named_side(name, duel, row) for name in (one, two)]
        if None in order or order[0] == order[1]:
            return None
        if sign[0] in "=~\N{ALMOST EQUAL TO}":
            return TIE
        return FIRST if (order[0] == 0) == (sign[0] == ">") else SECOND
    side = _named_side(text, duel, row)
    return None if side is None else (FIRST, SECOND)[side]


def _named_side(text: str, duel: Duel, row: Row) -> int | None:
    """0 or 1: which answer a name means, such as "b", "model_b", "response b is better" or the name of the model."""
    name = re.sub(r"_(is_)?(much_|slightly_|significantly_)?(better|wins|win|preferred|won)$", "", plain(text))
    for i, (side, column) in enumerate(zip(duel.sides, duel.answers, strict=True)):
        names = {side, plain(column), ("first", "second")[i], ("left", "right")[i]}
        names |= {
            f"{word}_{side}" for word in ("model", "response", "answer", "output", "completion", "assistant", "option")
        }
        names |= {f"{word}{side}" for word in ("model", "response", "answer", "output", "completion", "assistant")}
        if name in names:
            return i
    models = [row.get(f"model_{side}", row.get(f"{column}_model")) for side, column in zip(*duel[::-1], strict=True)]
    if all(isinstance(model, str) for model in models) and models[0] != models[1]:
        for i, model in enumerate(models):
            if text == str(model).strip().lower():
                return i
    return None


def _of_sides(row: Row, duel: Duel, means: str) -> dict[str, tuple[str, str]]:
    """{what: its columns for the two answers}, such as {"is_response_safe": ("is_response_0_safe", ..)}."""
    found: dict[str, dict[str, str]] = {}
    used = set(duel.answers)
    for column in row:
        parts = plain(column).split("_")
        for at, part in enumerate(parts):
            if part in duel.sides and column not in used:
                found.setdefault("_".join([*parts[:at], *parts[at + 1 :]]), {})[part] = column
                break
    return {
        what: (sides[duel.sides[0]], sides[duel.sides[1]])
        for what, sides in found.items()
        if len(sides) == 2 and re.fullmatch(means, what)
    }


_RATED = re.compile(rf"(?:(?:{_ANSWER}|orig|model|human|gpt4|judge)_)?(?:{_SCORE})")
_SAFE = re.compile(r"is_(?:response|answer|output|completion)_(?:safe|correct|good|acceptable|helpful|accepted)")
_CALLED = re.compile(r"winner(?:_model)?|(?:is_)?(?:chosen|preferred|better|winner)")


def verdict_columns(row: Row, duel: Duel) -> list[str]:
    return [
        column
        for column in row
        if "better" in meanings(column) and column not in duel.answers and not is_empty(row[column])
    ]


def judged(row: Row, duel: Duel) -> bool:
    """Whether a column could say which answer is better."""
    named = any("better" in meanings(column) for column in row if column not in duel.answers)
    return named or any(_of_sides(row, duel, pattern.pattern) for pattern in (_RATED, _SAFE, _CALLED))


def verdict(row: Row, duel: Duel) -> tuple[tuple[float, float], str | None]:
    """(scores of the two answers, why the better one is unknown). Raises DataError for a verdict that cannot be
    understood."""
    found: dict[str, tuple[float, float]] = {}
    columns = verdict_columns(row, duel)
    if len(columns) > 1:  # then a strength says by how much
        columns = [column for column in columns if plain(column) != "preference_strength"]
    for column in columns:
        scores = _side_of(row[column], column, duel, row)
        if scores is None:
            one, two = duel.answers
            raise DataError(
                f"'{column}' must say whether '{one}' or '{two}' is better, found {shown(row[column])}", field=column
            )
        found[column] = scores
    for one, two in _of_sides(row, duel, _CALLED.pattern).values():
        said = [word(row[column]) for column in (one, two)]
        if None in said:
            if all(is_empty(row[column]) for column in (one, two)):
                continue
            raise DataError(f"'{one}' and '{two}' must be true or false, found {shown(row[one])}", field=one)
        found[one] = TIE if said[0] == said[1] else FIRST if said[0] == "yes" else SECOND
    rated = _numbers(row, duel)
    safe = safety(row, duel)
    if not found and rated is None and safe is None:
        return TIE, "no verdict"
    if not found:
        scores = rated if rated is not None else safe
        assert scores is not None
        return scores, None
    if len({scores[0] - scores[1] for scores in found.values()}) > 1:
        return TIE, "verdicts disagree"
    scores = next(iter(found.values()))
    if rated is not None and (rated[0] - rated[1]) * (scores[0] - scores[1]) < 0:
        return TIE, "scores contradict the choice"
    return scores, None


def _numbers(row: Row, duel: Duel) -> tuple[float, float] | None:
    for one, two in _of_sides(row, duel, _RATED.pattern).values():
        scores = number(row[one]), number(row[two])
        if scores[0] is not None and scores[1] is not None:
            return scores[0], scores[1]
    return None


def safety(row: Row, duel: Duel) -> tuple[float, float] | None:
    """1 for an answer that is safe (or right), 0 for one that is not."""
    for one, two in _of_sides(row, duel, _SAFE.pattern).values():
        said = verdict_of("is_safe", row[one]), verdict_of("is_safe", row[two])
        if said[0] is not None and said[1] is not None:
            return float(said[0]), float(said[1])
    return None


def judging_columns(row: Row, duel: Duel) -> list[str]:
    """The columns that judge each side on its own."""
    sides = [_of_sides(row, duel, pattern.pattern) for pattern in (_RATED, _SAFE, _CALLED)]
    return [column for pairs in sides for pair in pairs.values() for column in pair]
