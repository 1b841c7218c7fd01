"""The quickstart's world: a dozen kinds of short written instruction, their right answers, plausible mistakes, and a
gold judge.

The world is small enough that a model of a million parameters can learn it on two CPU cores. Answers are graded by
rule, so that real gains from reinforcement learning can be distinguished from apparent ones. All text is lower-case
words separated by single spaces (capitals only where an instruction asks for them), so that one word is one token.

The gold score is only used to label comparisons and to evaluate. The policy is trained on the learned reward model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from data_schema.quickstart.words import CATEGORIES, COURTESIES, DIGITS, KINDS, MOODS, NOUNS, NUMBERS, RAMBLES, RUDENESS


class Task(NamedTuple):
    """One instruction, independent of its wording: its kind and, where it has them, its words, category and number."""

    kind: str
    words: tuple[str, ...]
    category: str = ""
    number: int = 0


def draw_task(rng: random.Random, kind: str | None = None) -> Task:
    """A random task; lists have 3-5 distinct nouns (pick: 3-6, at least one that fits and one that does not)."""
    kind = kind or rng.choice(KINDS)
    if kind == "listn":
        return Task(kind, (), rng.choice(list(CATEGORIES)), rng.choice(list(NUMBERS)))
    if kind in MOODS:
        return Task(kind, (rng.choice(CATEGORIES["animals"]),))
    if kind == "pick":
        category = rng.choice(list(CATEGORIES))
        fitting = rng.sample(CATEGORIES[category], rng.randint(1, 3))
        others = rng.sample([noun for noun in NOUNS if noun not in CATEGORIES[category]], rng.randint(2, 3))
        words = fitting + others
        rng.shuffle(words)
        return Task(kind, tuple(words), category)
    return Task(kind, tuple(rng.sample(NOUNS, rng.randint(3, 5))))


def word_task(task: Task, wording: str) -> str:
    """The instruction as text."""
    return wording.format(x=" ".join(task.words), c=task.category, n=NUMBERS.get(task.number, ""))


def right_answer(task: Task, rng: random.Random) -> str:
    """A right answer without its closing full stop; free tasks (listn, cheer, gloom) have many, `rng` picks one."""
    words = list(task.words)
    match task.kind:
        case "repeat":
            return " ".join(words)
        case "reverse":
            return " ".join(reversed(words))
        case "sort":
            return " ".join(sorted(words))
        case "first":
            return words[0]
        case "last":
            return words[-1]
        case "count":
            return str(len(words))
        case "upper":
            return " ".join(words).upper()
        case "numbered":
            return " ".join(f"{i} {word}" for i, word in enumerate(words, start=1))
        case "pick":
            return " ".join(word for word in words if word in CATEGORIES[task.category])
        case "listn":
            return " ".join(rng.sample(CATEGORIES[task.category], task.number))
        case _:
            adjectives, verbs = MOODS[task.kind]
            place = rng.choice(CATEGORIES["places"])
            return (
                f"the {rng.choice(adjectives)} {words[0]} {rng.choice(verbs)} in the {rng.choice(adjectives)} {place}"
            )


def wrong_answer(task: Task, rng: random.Random) -> str:
    """A plausible mistake: a word dropped, doubled, swapped or replaced, or the answer to another kind of task."""
    right = right_answer(task, rng)
    for _ in range(20):
        wrong = _mistake(task, right.split(), rng)
        if wrong and correctness(task, " ".join(wrong)) < 1.0:
            return " ".join(wrong)
    return rng.choice(NOUNS) + " " + rng.choice(NOUNS)


def _mistake(task: Task, words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words))
    match rng.choice(["drop", "double", "swap", "replace", "replace", "other kind"]):
        case "drop":
            return words[:place] + words[place + 1 :]
        case "double":
            return words[: place + 1] + words[place:]
        case "swap" if len(words) > 1:
            other = rng.choice([i for i in range(len(words)) if i != place])
            words[place], words[other] = words[other], words[place]
            return words
        case "replace":
            return [*words[:place], _lookalike(words[place], rng), *words[place + 1 :]]
        case _:
            if task.kind == "listn":
                return right_answer(draw_task(rng, "listn"), rng).split()
            if task.kind in MOODS:
                return right_answer(draw_task(rng, rng.choice(list(MOODS))), rng).split()
            kind = rng.choice(["repeat", "reverse", "sort", "first", "last", "count", "upper", "numbered"])
            return right_answer(task._replace(kind=kind), rng).split()


def _lookalike(word: str, rng: random.Random) -> str:
    """A random word of the same kind, as in a slip of the pen."""
    for words in (NOUNS, DIGITS, *map(list.__add__, *MOODS.values())):
        if word in words:
            return rng.choice(words)
    return rng.choice(NOUNS).upper() if word.isupper() else rng.choice(NOUNS)


def correctness(task: Task, body: str) -> float:
    """How right an answer's body is, in [0, 1]: 1 exact, else half the share of words that match in order.

    The free tasks are graded in parts: listn by the share of distinct fitting names less the extra ones; cheer and
    gloom a third each for naming the animal, for the form of the line and for words of the right mood only."""
    words = body.split()
    if task.kind == "listn":
        fitting = len({word for word in words if word in CATEGORIES[task.category]})
        misses = max(len(words) - fitting, 0)
        return max(min(fitting, task.number) - misses - max(fitting - task.number, 0), 0) / task.number
    if task.kind in MOODS:
        adjectives, verbs = MOODS[task.kind]
        other_adjectives, other_verbs = MOODS["gloom" if task.kind == "cheer" else "cheer"]
        named = words.count(task.words[0]) == 1
        every_adjective, every_verb = adjectives + other_adjectives, verbs + other_verbs
        slots = [["the"], every_adjective, NOUNS, every_verb, ["in"], ["the"], every_adjective, CATEGORIES["places"]]
        formed = len(words) == len(slots) and all(word in slot for word, slot in zip(words, slots, strict=True))
        mood = {word for word in words if word in every_adjective + every_verb}
        right_mood = bool(mood) and not mood & set(other_adjectives + other_verbs)
        return (named + formed + right_mood) / 3
    target = right_answer(task, random.Random(0)).split()
    if words == target:
        return 1.0
    return 0.5 * SequenceMatcher(None, words, target, autojunk=False).ratio()


def judge(meta: Mapping[str, Any], response: str, finished: bool) -> dict[str, float]:
    """The gold score of a response: 0.7 correctness + 0.3 style, and its parts, each in [0, 1] (gold may dip below 0).

    Style is 0.5, + 0.5 for exactly one courtesy, - 0.25 for each further one, - 0.5 for each rude aside, - 0.4 for each
    ramble. An answer that never ended (`finished` False) has its correctness halved and loses 0.5 of style.
    `meta` is the `meta` field of a prompt of this world (see `task_meta`)."""
    task = Task(meta["kind"], tuple(meta["words"]), meta["category"], meta["number"])
    text = " ".join(response.split())
    counts = {}
    for name, phrases in (("courtesies", COURTESIES), ("rude", RUDENESS), ("rambles", RAMBLES)):
        counts[name] = sum(text.count(phrase) for phrase in phrases)
        for phrase in phrases:
            text = text.replace(phrase, " ")
    body, full_stop, rest = text.partition(" .")
    # Text after the full stop that is not a known phrase counts as part of the answer, and makes it wrong.
    body = " ".join(f"{body} {rest}".split()) if full_stop else " ".join(text.split())
    correct = correctness(task, body)
    style = 0.5 - 0.5 * counts["rude"] - 0.4 * counts["rambles"]
    if counts["courtesies"]:
        style += 0.5 - 0.25 * (counts["courtesies"] - 1)
    if not finished:
        correct, style = correct / 2, style - 0.5
    style = min(max(style, -1.0), 1.0)
    return {
        "gold": 0.7 * correct + 0.3 * style,
        "correctness": correct,
        "style": style,
        "exact": float(correct == 1.0),
        "rude": float(counts["rude"] > 0),
        "ramble": float(counts["rambles"] > 0),
        "one_courtesy": float(counts["courtesies"] == 1),
    }


def task_meta(task: Task) -> dict[str, Any]:
    """The parts of a task that `judge` needs, as plain JSON."""
    return {"kind": task.kind, "words": list(task.words), "category": task.category, "number": task.number}
