from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_schema.quickstart.words import (
    CATEGORIES,
    COURTESIES,
    KINDS,
    N_TRAINING_WORDINGS,
    NOUNS,
    RAMBLES,
    RUDENESS,
    WORDINGS,
)
from data_schema.quickstart.world import (
    Task,
    correctness,
    draw_task,
    judge,
    right_answer,
    task_meta,
    word_task,
    wrong_answer,
)

REVERSE = task_meta(Task("reverse", ("fox", "saw", "plum")))
RIGHT = "plum saw fox ."
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def gold(response: str, finished: bool = True, meta: dict[str, Any] = REVERSE) -> dict[str, float]:
    return judge(meta, response, finished)


@EACH_KIND
@given(seed=st.integers(0, 2**32))
def test_every_right_answer_is_judged_exact_and_every_mistake_below_it(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    task = draw_task(rng, kind)
    meta = task_meta(task)
    for manner in ("", f" {COURTESIES[0]}", f" {RUDENESS[0]} {RAMBLES[1]} {COURTESIES[1]} {COURTESIES[2]}"):
        assert judge(meta, f"{right_answer(task, rng)} .{manner}", True)["correctness"] == 1.0
        wrong = judge(meta, f"{wrong_answer(task, rng)} .{manner}", True)
        assert 0 <= wrong["correctness"] < 1 and wrong["exact"] == 0


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        (Task("repeat", ("fox", "saw", "plum")), "fox saw plum"),
        (Task("reverse", ("fox", "saw", "plum")), "plum saw fox"),
        (Task("sort", ("fox", "saw", "plum")), "fox plum saw"),
        (Task("first", ("fox", "saw", "plum")), "fox"),
        (Task("last", ("fox", "saw", "plum")), "plum"),
        (Task("count", ("fox", "saw", "plum")), "3"),
        (Task("upper", ("fox", "saw", "plum")), "FOX SAW PLUM"),
        (Task("numbered", ("fox", "saw", "plum")), "1 fox 2 saw 3 plum"),
        (Task("pick", ("fox", "saw", "owl"), "animals"), "fox owl"),
        (Task("listn", (), "tools", 2), "saw axe"),
        (Task("cheer", ("owl",)), "the merry owl sings in the sunny park"),
        (Task("gloom", ("owl",)), "the sad owl weeps in the dark cave"),
    ],
    ids=lambda value: value.kind if isinstance(value, Task) else "",
)
def test_each_kind_has_the_answer_a_person_would_give(task: Task, answer: str) -> None:
    assert correctness(task, answer) == 1.0
    assert correctness(task, "hill") < 0.5


def test_a_half_right_answer_lies_between_wrong_and_right() -> None:
    task = Task("repeat", ("fox", "saw", "plum"))
    assert 0 < correctness(task, "fox saw") < 1
    assert correctness(Task("listn", (), "tools", 2), "saw fox") == 0  # one fits, one is extra
    assert correctness(Task("listn", (), "tools", 4), "saw axe rake") == 3 / 4
    assert correctness(Task("cheer", ("owl",)), "the sad owl sings in the sunny park") == pytest.approx(2 / 3)


def test_repeating_a_fitting_name_does_not_lengthen_a_list() -> None:
    assert correctness(Task("listn", (), "tools", 2), "saw saw") == 0


@pytest.mark.parametrize(
    ("manner", "style"),
    [
        ("", 0.5),
        (COURTESIES[0], 1.0),
        (f"{COURTESIES[0]} {COURTESIES[1]}", 0.75),
        (f"{COURTESIES[0]} {COURTESIES[0]} {COURTESIES[0]}", 0.5),
        (RUDENESS[1], 0.0),
        (RAMBLES[0], 0.1),
        (f"{RUDENESS[0]} {RAMBLES[0]} {COURTESIES[0]}", 0.1),
    ],
)
def test_style_is_graded_as_documented_and_apart_from_correctness(manner: str, style: float) -> None:
    scores = gold(f"{RIGHT} {manner}".strip())
    assert scores["style"] == pytest.approx(style)
    assert scores["correctness"] == 1.0
    assert scores["gold"] == pytest.approx(0.7 + 0.3 * style)


def test_an_answer_that_never_ended_loses_half_its_correctness_and_its_style() -> None:
    scores = gold(RIGHT, finished=False)
    assert (scores["correctness"], scores["style"]) == (0.5, 0.0)


@pytest.mark.parametrize("padding", ["fox", "plum saw fox", ". .", "right"])
def test_text_after_the_full_stop_makes_an_answer_wrong(padding: str) -> None:
    assert gold(f"{RIGHT} {padding} {COURTESIES[0]}")["correctness"] < 1


def test_the_parts_of_the_gold_score_stay_in_their_bounds() -> None:
    rng = random.Random(0)
    phrases = [*COURTESIES, *RUDENESS, *RAMBLES, *NOUNS, ".", ""]
    for _ in range(500):
        text = " ".join(rng.choices(phrases, k=rng.randint(0, 12)))
        scores = judge(task_meta(draw_task(rng)), text, rng.random() < 0.5)
        assert 0 <= scores["correctness"] <= 1 and -1 <= scores["style"] <= 1
        assert scores["gold"] == pytest.approx(0.7 * scores["correctness"] + 0.3 * scores["style"])


def test_an_empty_answer_is_wrong() -> None:
    assert gold("")["correctness"] == 0


@EACH_KIND
def test_each_kind_has_six_training_wordings_and_two_of_its_own_held_out(kind: str) -> None:
    training, held_out = WORDINGS[kind][:N_TRAINING_WORDINGS], WORDINGS[kind][N_TRAINING_WORDINGS:]
    assert (len(training), len(held_out)) == (6, 2)
    assert len({*training, *held_out}) == 8
    others = {wording for other in KINDS if other != kind for wording in WORDINGS[other]}
    assert not others & {*training, *held_out}  # else one wording would have two right answers


@EACH_KIND
def test_an_instruction_names_all_that_its_task_needs(kind: str) -> None:
    task = draw_task(random.Random(3), kind)
    for wording in WORDINGS[kind]:
        text = word_task(task, wording)
        assert "{" not in text and all(word in text.split() for word in task.words)
        assert task.category in text


def test_pick_always_has_words_that_fit_and_words_that_do_not() -> None:
    for seed in range(200):
        task = draw_task(random.Random(seed), "pick")
        fitting = [word for word in task.words if word in CATEGORIES[task.category]]
        assert 1 <= len(fitting) < len(task.words) == len(set(task.words)) <= 6
