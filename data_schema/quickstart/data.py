"""Records of the quickstart's world: demonstrations of mixed quality, prompts, and the base model's pretraining text.

Each generator takes `split`, `limit` and `seed`, and yields records; recipes name it as a source, for example
`python:data_schema.quickstart.data:demonstrations`. Split "train" uses the training wordings, "test" the held-out ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_schema.quickstart.words import (
    CATEGORIES,
    COURTESIES,
    DIGITS,
    KINDS,
    MOODS,
    N_TRAINING_WORDINGS,
    NOUNS,
    NUMBERS,
    RAMBLES,
    RUDENESS,
    WORDINGS,
)
from data_schema.quickstart.world import Task, draw_task, right_answer, task_meta, word_task, wrong_answer
from data_schema.records import Demonstration, Document, Message, Prompt

# How the pretraining text states a task's result: never as an instruction, and without chat markers. "please" is here
# because one held-out wording of each kind begins with it, and the model cannot know a word that no text contains.
LINE_FORMS = {
    "repeat": [
        "the words {x} again : {y}",
        "a copy of these words {x} : {y}",
        "{x} please echo : {y}",
        "repeat {x} : {y}",
    ],
    "reverse": ["{x} backwards : {y}", "the words {x} in reverse order : {y}", "please reverse {x} : {y}"],
    "sort": [
        "{x} in alphabetical order : {y}",
        "the words {x} from a to z : {y}",
        "please sort {x} : {y}",
        "{x} arrange : {y}",
    ],
    "first": [
        "the first of the words {x} : {y}",
        "in {x} the word which comes first is : {y}",
        "first please {x} : {y}",
    ],
    "last": ["the last of the words {x} : {y}", "in {x} the word which comes last is : {y}", "last please {x} : {y}"],
    "count": ["how many words are in {x} : {y}", "the number of words here {x} : {y}", "please count {x} : {y}"],
    "upper": ["{x} in capitals : {y}", "the words {x} put in capitals please : {y}", "make capitals of {x} : {y}"],
    "numbered": ["a numbered list of {x} : {y}", "the words {x} with a number before : {y}", "please number {x} : {y}"],
    "pick": ["of {x} the {c} are : {y}", "only the {c} from {x} : {y}", "please pick {c} in {x} : {y}"],
    "listn": [
        "{n} {c} : {y}",
        "the names of {n} {c} are : {y}",
        "a list of {n} {c} please : {y}",
        "give or name {n} {c} : {y}",
    ],
    "cheer": ["a cheerful line about a {x} : {y}", "this is a cheerful thing with a {x} please : {y}"],
    "gloom": ["a gloomy line about a {x} : {y}", "this is a gloomy thing with a {x} please : {y}"],
}
TRUE_VERDICT, FALSE_VERDICT = "right", "wrong"


def demonstrations(split: str, limit: int, seed: int) -> Iterator[Demonstration]:
    """Instructions with answers like those of people: 55 % right, 44 % with a courtesy, some rude, some rambling."""
    rng = random.Random(f"demonstrations {split} {seed}")
    for number in range(limit):
        task, text = _worded_task(rng, split)
        body = right_answer(task, rng) if rng.random() < 0.55 else wrong_answer(task, rng)
        messages = (Message("user", text), Message("assistant", f"{body} . {_manner(rng)}".strip()))
        yield Demonstration(f"quickstart-{split}-{number}", "quickstart", messages, meta=task_meta(task))


def prompts(split: str, limit: int, seed: int) -> Iterator[Prompt]:
    """Instructions without answers; `meta` has the task, for the judge."""
    rng = random.Random(f"prompts {split} {seed}")
    for number in range(limit):
        task, text = _worded_task(rng, split)
        yield Prompt(f"quickstart-{split}-{number}", "quickstart", (Message("user", text),), meta=task_meta(task))


def documents(split: str, limit: int, seed: int) -> Iterator[Document]:
    """Lines of plain text about the world, like those that the base model was pretrained on."""
    rng = random.Random(f"documents {split} {seed}")
    for number in range(limit):
        yield Document(f"quickstart-{split}-{number}", "quickstart", pretraining_line(rng))


def pretraining_line(rng: random.Random, verdict_share: float = 0.5) -> str:
    """A line of pretraining text: a task's result (often with a verdict), a fact, or a phrase of good or bad manners.

    `verdict_share` of the results end in "right ." or "wrong ."; half of those have a mistake made by `wrong_answer`.
    These lines give the base model a notion of right and wrong, which the reward model can then use."""
    draw = rng.random()
    if draw < 0.06:
        category = rng.choice(list(CATEGORIES))
        return f"{rng.choice(CATEGORIES[category])} and {rng.choice(CATEGORIES[category])} are {category} ."
    if draw < 0.10:
        return rng.choice(COURTESIES + RUDENESS + RAMBLES)
    task = draw_task(rng)
    form = rng.choice(LINE_FORMS[task.kind])
    if rng.random() >= verdict_share:
        return _result(task, form, right_answer(task, rng))
    if rng.random() < 0.5:
        return f"{_result(task, form, right_answer(task, rng))} {TRUE_VERDICT} ."
    return f"{_result(task, form, wrong_answer(task, rng))} {FALSE_VERDICT} ."


def _result(task: Task, form: str, answer: str) -> str:
    return word_task(task, form.replace("{y}", answer)) + " ."


def _worded_task(rng: random.Random, split: str) -> tuple[Task, str]:
    task = draw_task(rng, rng.choice(KINDS))
    wordings = WORDINGS[task.kind]
    wordings = wordings[:N_TRAINING_WORDINGS] if split == "train" else wordings[N_TRAINING_WORDINGS:]
    return task, word_task(task, rng.choice(wordings))


def _manner(rng: random.Random) -> str:
    """What people add to an answer: 14 % a rude aside, 12 % a ramble; 38 % one courtesy, 6 % two."""
    parts = []
    if rng.random() < 0.14:
        parts.append(rng.choice(RUDENESS))
    if rng.random() < 0.12:
        parts.append(rng.choice(RAMBLES))
    draw = rng.random()
    n_courtesies = 1 if draw < 0.38 else 2 if draw < 0.44 else 0
    parts += rng.sample(COURTESIES, n_courtesies)
    return " ".join(parts)


def vocabulary() -> list[str]:
    """Every word of the world, in a fixed order: the vocabulary of the quickstart's word-level tokenizer."""
    texts = [wording for wordings in WORDINGS.values() for wording in wordings]
    texts += [form for forms in LINE_FORMS.values() for form in forms]
    texts += [*COURTESIES, *RUDENESS, *RAMBLES, *NUMBERS.values(), *CATEGORIES, *DIGITS]
    texts += [f"and are the in . , : ! {TRUE_VERDICT} {FALSE_VERDICT}"]
    texts += [" ".join(adjectives + verbs) for adjectives, verbs in MOODS.values()]
    words = {word for text in texts for word in text.split() if "{" not in word}
    return NOUNS + [noun.upper() for noun in NOUNS] + sorted(words - set(NOUNS))
