from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_schema.quickstart.data import demonstrations, documents, pretraining_line, prompts, vocabulary
from data_schema.quickstart.words import COURTESIES, KINDS, N_TRAINING_WORDINGS, RAMBLES, RUDENESS, WORDINGS
from data_schema.quickstart.world import judge

BASE = Path(__file__).parent.parent / "assets" / "quickstart_base"
N = 4000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


def pattern(wording: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w\\\}", r"[\\w ]+", re.escape(wording)))


HELD_OUT = [pattern(wording) for wordings in WORDINGS.values() for wording in wordings[N_TRAINING_WORDINGS:]]
TRAINING = [pattern(wording) for wordings in WORDINGS.values() for wording in wordings[:N_TRAINING_WORDINGS]]


@pytest.mark.parametrize("make", [demonstrations, prompts, documents])
def test_records_are_the_same_for_the_same_seed_and_others_for_another(make) -> None:
    first, again, other = (list(make("train", 30, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert list(make("train", 10, 1)) == first[:10]
    assert list(make("test", 30, 1)) != first or make is documents
    assert len({record.id for record in first}) == 30


def test_training_instructions_use_every_training_wording_and_no_held_out_one() -> None:
    records = [*demonstrations("train", N, 0), *prompts("train", N, 0)]
    texts = [getattr(record, "messages", None) or record.prompt for record in records]
    instructions = [messages[0].content for messages in texts]
    assert not [text for text in instructions if any(held_out.fullmatch(text) for held_out in HELD_OUT)]
    assert all(any(wording.fullmatch(text) for text in instructions) for wording in TRAINING)


def test_test_prompts_use_every_held_out_wording_and_no_training_one() -> None:
    instructions = [record.prompt[0].content for record in prompts("test", N, 0)]
    assert all(any(wording.fullmatch(text) for wording in HELD_OUT) for text in instructions)
    assert all(any(wording.fullmatch(text) for text in instructions) for wording in HELD_OUT)


def test_pretraining_text_holds_no_instruction_and_no_held_out_wording() -> None:
    rng = random.Random(0)
    lines = [pretraining_line(rng) for _ in range(N)] + [record.text for record in documents("train", N, 0)]
    for line in lines:
        assert not any(wording.search(line) for wording in HELD_OUT), line
        assert "<" not in line


def test_the_tokenizer_knows_every_word(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [record.text for record in documents("train", N, 0)]
    for split in ("train", "test"):
        texts += [message.content for record in demonstrations(split, N, 0) for message in record.messages]
        texts += [record.prompt[0].content for record in prompts(split, N, 0)]
    words = {word for text in texts for word in text.split()}
    assert words <= set(vocabulary()) <= tokenizer.get_vocab().keys()
    assert words - tokenizer.get_vocab().keys() == set()
    assert len(vocabulary()) == len(set(vocabulary()))


def test_one_word_is_one_token_and_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    for record in demonstrations("train", 50, 0):
        text = record.messages[1].content
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text


def test_demonstrations_are_right_courteous_rude_and_rambling_as_often_as_documented() -> None:
    counts: Counter[str] = Counter()
    for record in demonstrations("train", N, 0):
        answer = record.messages[1].content
        counts["right"] += judge(record.meta, answer, True)["exact"] == 1.0
        n_courtesies = sum(answer.count(phrase) for phrase in COURTESIES)
        counts["one"] += n_courtesies == 1
        counts["two"] += n_courtesies == 2
        counts["rude"] += any(phrase in answer for phrase in RUDENESS)
        counts["ramble"] += any(phrase in answer for phrase in RAMBLES)
    for name, share in {"right": 0.55, "one": 0.38, "two": 0.06, "rude": 0.14, "ramble": 0.12}.items():
        margin = 5 * (share * (1 - share) / N) ** 0.5
        assert counts[name] / N == pytest.approx(share, abs=margin), name


def test_every_kind_of_task_is_asked_about_equally_often() -> None:
    counts = Counter(record.meta["kind"] for record in prompts("train", N, 0))
    assert counts.keys() == set(KINDS)
    expected = N / len(KINDS)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
