"""Rank classification, exact match, ROUGE-L, few-shot prompts, and the report on several models."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recipe import Chain
from tiny_models import byte_tokenizer, quickstart_tokenizer, tiny_llama, tiny_t5
from transformers import AutoModelForSeq2SeqLM

from data_schema import DataError, Demonstration, Message
from pipeline.__main__ import main
from policy.answer_likelihood import Question, answer_logprobs, like_length_batches
from policy.language_model import save_checkpoint
from policy.sampling.greedy import greedy_answers
from workbench.tasks.data import ChoiceRule, Task, build_tasks, shuffled, with_exemplars
from workbench.tasks.evaluation import name_and_model
from workbench.tasks.metrics import Estimate, exact_match, mean_of_tasks, normalise_answer, rouge_l, share

SHORT_OF_TOKENS = 40  # so small a bound that most questions are read alone
Z = 1.959964


def row(number: int, prompt: str, answer: str, **meta: Any) -> Demonstration:
    return Demonstration(f"t:{number}", "t.jsonl", (Message("user", prompt), Message("assistant", answer)), meta=meta)


def questions(prompts: list[list[int]], answers: list[list[list[int]]]) -> list[Question]:
    return [Question(*pair) for pair in zip(prompts, answers, strict=True)]


def tasks_of(records: list[Demonstration], **changes: Any) -> tuple[list[Task], Counter[str]]:
    settings = {"by": None, "rule": ChoiceRule(), "shots": 0, "rows": None, "seen": (), "seed": 0}
    return build_tasks(records, **settings | changes)


PROMPTS = [[9, 8, 7], [5, 6, 7, 8, 9, 10, 11], [4]]
ANSWERS = [[[11, 12, 2], [13, 2], [2]], [[14, 2], [15, 2]], [[8, 7, 6, 5, 2], [9, 2], [10, 11, 2]]]


@pytest.mark.parametrize("tokens_at_once", [SHORT_OF_TOKENS, 10_000])
def test_a_decoder_gives_each_choice_the_log_likelihood_it_has_alone(tokens_at_once: int) -> None:
    model = tiny_llama(quickstart_tokenizer())
    told: list[int] = []
    found = answer_logprobs(model, questions(PROMPTS, ANSWERS), tokens_at_once, told.append)
    assert sum(told) == len(PROMPTS)
    for prompt, answers, sums in zip(PROMPTS, ANSWERS, found, strict=True):
        for answer, total in zip(answers, sums, strict=True):
            labels = torch.tensor([[-100] * len(prompt) + answer])
            with torch.no_grad():
                mean = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.item()
            assert total == pytest.approx(-mean * len(answer), rel=1e-4)


@pytest.mark.parametrize("tokens_at_once", [SHORT_OF_TOKENS, 10_000])
def test_an_encoder_decoder_gives_each_choice_the_log_likelihood_it_has_alone(tokens_at_once: int) -> None:
    model = tiny_t5(quickstart_tokenizer())
    found = answer_logprobs(model, questions(PROMPTS, ANSWERS), tokens_at_once)
    for prompt, answers, sums in zip(PROMPTS, ANSWERS, found, strict=True):
        for answer, total in zip(answers, sums, strict=True):
            with torch.no_grad():
                mean = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).loss.item()
            assert total == pytest.approx(-mean * len(answer), rel=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), max_size=12), st.integers(1, 200))
def test_batches_hold_every_question_once_and_keep_the_bound(shapes: list[tuple[int, int]], bound: int) -> None:
    asked = [Question([1] * length, [[1, 2]] * n) for length, n in shapes]
    batches = list(like_length_batches(asked, bound))
    assert sorted(i for batch in batches for i in batch) == list(range(len(asked)))
    for batch in batches:
        width = max(len(asked[i].prompt) + 2 for i in batch)
        assert len(batch) == 1 or width * sum(len(asked[i].answers) for i in batch) <= bound


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_written_answers_are_the_likeliest_tokens_whatever_the_checkpoint_is_used_to(encoder_decoder: bool) -> None:
    tokenizer = quickstart_tokenizer()
    model: Any = (tiny_t5 if encoder_decoder else tiny_llama)(tokenizer)
    model.generation_config.num_beams, model.generation_config.repetition_penalty = 3, 5.0
    found = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=2)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        written: list[int] = []
        for _ in range(6):
            read = torch.tensor([prompt + ([] if encoder_decoder else written)])
            more = {"decoder_input_ids": torch.tensor([[tokenizer.pad_token_id, *written]])} if encoder_decoder else {}
            with torch.no_grad():
                written.append(int(model(input_ids=read, **more).logits[0, -1].argmax()))
            if written[-1] == tokenizer.eos_token_id:
                break
        assert answer.text == tokenizer.decode(written, skip_special_tokens=True).strip()
        assert answer.ended == (written[-1] == tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The cat.", "cat", 1),
        ("  U.S.A ", "usa", 1),
        ("an apple,  a pear", "apple pear", 1),
        ("catalan", "catal", 0),
        ("A", "a", 1),
        ("A", "B", 0),
        ("the", "A", 0),
        ("", "A", 0),
        ("?", "!", 0),
        ("Not  equivalent", "not equivalent.", 1),
    ],
)
def test_exact_match_overlooks_case_punctuation_articles_and_spaces(answer: str, reference: str, right: int) -> None:
    assert exact_match(answer, ["something else", reference]) == right


def test_normalising_twice_changes_nothing() -> None:
    for text in ("The U.S.", "a an the", "-", "A!", "theatre of the absurd"):
        assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("police killed the gunman", ["police kill the gunman"], 3 / 4),  # Lin 2004, section 2, S2
        ("the gunman kill police", ["police kill the gunman"], 1 / 2),  # the same, S3
        ("The quick brown dog jumps on the log.", ["The quick brown fox jumps over the lazy dog"], 10 / 17),
        ("one two three", ["two one", "three"], 1 / 2),
        ("", ["word"], 0),
        ("...", ["word"], 0),
        ("Word-level", ["word level"], 1),
        ("北京大学", ["北京"], 2 / 3),
    ],
)
def test_rouge_l_has_known_values(answer: str, references: list[str], score: float) -> None:
    assert rouge_l(answer, references) == pytest.approx(score)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    rates, sizes = np.array([0.3, 0.5, 0.9]), (40, 60, 200)
    hits = Counter[str]()
    for _ in range(400):
        tasks = [(rng.random(n) < rate).astype(float).tolist() for n, rate in zip(sizes, rates, strict=True)]
        hits["mean"] += covers(mean_of_tasks(tasks), rates.mean())
        hits["share"] += covers(share(tasks[0]), rates[0])
    assert all(0.92 <= count / 400 <= 0.98 for count in hits.values())


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_tasks_weigh_the_same_whatever_their_size() -> None:
    found = mean_of_tasks([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0]])
    variance = (0.75 * 0.25 * 4 / 3 / 4 + 0.5 * 0.5 * 2 / 1 / 2) / 4
    assert found.value == pytest.approx((0.75 + 0.5) / 2)
    assert found.high - found.value == pytest.approx(Z * math.sqrt(variance), rel=1e-5)
    for unknown in ([[1.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]):
        assert math.isnan(mean_of_tasks(unknown).low)


def test_a_task_is_named_by_meta_or_by_its_file_and_template() -> None:
    records = [
        row(1, "a", "x", task="one"),
        row(2, "b", "x", task_name="two"),
        row(3, "c", "x"),
        row(4, "d", "x", template="p"),
    ]
    assert [task.name for task in tasks_of(records)[0]] == ["one", "two", "t", "t/p"]
    with pytest.raises(DataError, match="row 't:2' has no 'task' in meta; it has task_name"):
        tasks_of(records, by="task")


def test_choices_come_from_meta_and_a_row_whose_target_is_none_of_them_is_counted() -> None:
    records = [row(i, f"q{i}", answer, answer_choices=["yes", "no"]) for i, answer in enumerate(["yes", "no", "maybe"])]
    (task,), left_out = tasks_of(records)
    assert [example.choices for example in task.examples] == [("yes", "no")] * 2
    assert (task.choices_from, left_out) == ("meta", {"target is none of its choices": 1})
    assert tasks_of(records, rule=ChoiceRule("none"))[0][0].choices_from is None
    with pytest.raises(DataError, match="must be a list of texts"):
        tasks_of([row(1, "q", "yes", answer_choices="yes ||| no")])


@pytest.mark.parametrize(
    ("targets", "choices"),
    [
        (["b", "a"] * 5, ("a", "b")),
        (["a"] * 10, None),  # nothing to choose between
        (list("abcdefghij"), None),  # no target recurs
        (["a", "b", "c", "d"] * 2, None),  # more than `most`
    ],
)
def test_targets_are_choices_where_they_are_few_and_recur(targets: list[str], choices: tuple[str, ...] | None) -> None:
    records = [row(i, f"q{i}", target) for i, target in enumerate(targets)]
    (task,), _ = tasks_of(records, rule=ChoiceRule("from-targets", most=3))
    assert task.choices_from == ("targets" if choices else None)
    assert {example.choices for example in task.examples} == {choices or ()}
    assert tasks_of(records)[0][0].choices_from is None


def test_every_reference_counts() -> None:
    (task,), _ = tasks_of([row(1, "q", "hen", references=["hen", " fowl "])])
    assert task.examples[0].references == ("hen", "fowl")


@pytest.mark.parametrize("shots", [1, 3, 50])
def test_exemplars_are_other_rows_of_the_task_and_never_the_row_itself(shots: int) -> None:
    records = [row(i, f"question {i % 8} ?", f"answer {i}", task="one") for i in range(12)]
    records += [row(i, f"other {i}", "foreign", task="two") for i in range(20, 24)]
    tasks, _ = tasks_of(records, shots=shots)
    for record, example in zip(records, [e for task in tasks for e in task.examples], strict=True):
        text = example.prompt[-1].content
        own = record.messages[0].content
        assert text.endswith(own) and text.count(own) == 1
        shown = [other for other in records if other.messages[0].content in text.removesuffix(own)]
        assert {other.meta["task"] for other in shown} == {record.meta["task"]}
        among = 7 if record.meta["task"] == "one" else 3
        assert sum(text.count(f"{kind} ") for kind in ("question", "other")) == 1 + min(shots, among)
    again, _ = tasks_of(records, shots=shots)
    assert again == tasks


def test_a_dialogue_has_no_exemplars_and_is_counted() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    dialogue = Demonstration("t:9", "t.jsonl", turns)
    records = [dialogue, row(1, "q1", "x"), row(2, "q2", "y")]
    tasks, left_out = tasks_of(records, shots=2)
    assert [example.id for example in tasks[0].examples] == ["t:1", "t:2"]
    assert left_out == {"no exemplars to show": 1}
    assert with_exemplars(dialogue, records, 0, 0) == turns[:-1]


@given(st.integers(0, 30), st.integers(0, 5))
def test_shuffling_gives_each_number_once_and_any_of_them_first(n: int, seed: int) -> None:
    assert sorted(shuffled(n, random.Random(seed))) == list(range(n))
    assert len({next(shuffled(4, random.Random(s))) for s in range(60)}) == 4


def test_rows_are_drawn_by_the_seed() -> None:
    records = [row(i, f"q{i}", "x") for i in range(40)]
    drawn = [[e.id for e in tasks_of(records, rows=10, seed=seed)[0][0].examples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10


def test_a_model_is_named_before_the_first_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1"
    folder.mkdir()
    assert name_and_model("a=b/c=d") == ("a", "b/c=d")
    assert name_and_model("b/c") == ("b/c", "b/c")
    assert name_and_model(str(folder)) == (str(folder), str(folder))


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "mixed.jsonl"
    rows: list[dict[str, Any]] = []
    for i, word in enumerate(["fox", "owl", "hen", "dog"] * 3):
        rows.append({"prompt": f"echo this : {word} {i}", "completion": word, "task": "write"})
        choice = {"task": "choose", "answer_choices": ["fox", "owl ."]}
        rows.append({"prompt": f"pick : {word} {i}", "completion": ["fox", "owl ."][i % 2], **choice})
    rows.append({"prompt": "echo this : " + "fox " * 200, "completion": "fox", "task": "write"})
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_a_base_directory_and_a_name_of_the_store_stand_in_one_report(
    chain: Chain, tasks_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, samples = tmp_path / "report.json", tmp_path / "samples.jsonl"
    models = ["--models", f"base={chain.base}", "sft=small/sft", "--root", str(chain.root)]
    words = [*models, "--tasks", str(tasks_file), "--max-new-tokens", "8", "--device", "cpu"]
    assert main(["evaluate-tasks", *words, "--json", str(report), "--samples", str(samples)]) == 0
    printed = capsys.readouterr().out
    assert "sft - base" in printed and "Rows left out: too long: 1" in printed
    told = json.loads(report.read_text())
    assert {(entry["task"], entry["metric"], entry["rows"]) for entry in told["tasks"]} == {
        ("choose", "rank accuracy", 12),
        ("write", "exact match", 12),
        ("write", "ROUGE-L", 12),
    }
    assert told["models"]["sft"]["key"] == chain.summary["stages"]["sft"]["key"]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 24
    for name in ("base", "sft"):
        ranked = [line for line in lines if line["task"] == "choose"]
        right = [line["answers"][name]["answer"] == line["references"][0] for line in ranked]
        found = next(entry for entry in told["tasks"] if entry["task"] == "choose")
        assert found["models"][name]["value"] == pytest.approx(sum(right) / 12)
        for line in ranked:
            scores = line["answers"][name]["detail"]
            assert line["answers"][name]["answer"] == max(scores, key=scores.__getitem__)
    assert told["means"] == []  # a single task of each kind
    rank = next(entry for entry in told["tasks"] if entry["task"] == "choose")
    assert rank["differences"]["sft"]["value"] == pytest.approx(
        rank["models"]["sft"]["value"] - rank["models"]["base"]["value"]
    )


def test_an_encoder_decoder_is_evaluated_beside_a_decoder(chain: Chain, tasks_file: Path, tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_t5(tokenizer), tokenizer, tmp_path / "t5")
    report = tmp_path / "report.json"
    words = ["--models", f"t5={tmp_path / 't5'}", f"base={chain.base}", "--tasks", str(tasks_file), "--shots", "1"]
    words += ["--score", "mean", "--rows", "4", "--max-new-tokens", "4", "--device", "cpu"]
    samples = tmp_path / "samples.jsonl"
    assert main(["evaluate-tasks", *words, "--json", str(report), "--samples", str(samples)]) == 0
    told = json.loads(report.read_text())
    assert [model["encoder_decoder"] for model in told["models"].values()] == [True, False]
    assert [entry["rows"] for entry in told["tasks"] if entry["task"] == "choose"] == [4]
    line = next(line for line in map(json.loads, samples.read_text().splitlines()) if line["task"] == "choose")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5").eval()
    prompt = tokenizer(f"<user> {line['prompt']} <assistant> <eos>", add_special_tokens=False)["input_ids"]
    labels = torch.tensor([tokenizer("owl . <eos>", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = -model(input_ids=torch.tensor([prompt]), labels=labels).loss.item()
    assert line["answers"]["t5"]["detail"]["owl ."] == pytest.approx(expected, rel=1e-4)


def test_prompts_that_a_model_was_trained_on_are_left_out(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--models", "sft=small/sft", "--root", str(chain.root), "--device", "cpu", "--tasks"]
    source = chain.recipe["sft"]["data"]["path"]
    assert main(["evaluate-tasks", *words, source, "--limit", "200"]) in (0, 2)
    assert "trained on" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--models", "nowhere/model", "--tasks", "TASKS"], ["'nowhere/model' is not a directory", "no checkpoint"]),
        (["--models", "BASE", "a=BASE", "a=BASE", "--tasks", "TASKS"], ["two are called a", "NAME=MODEL"]),
        (["--models", "BASE", "--tasks", "TASKS", "--shots", "-1"], ["--shots is -1", "at least 0"]),
        (["--models", "BASE", "--tasks", "TASKS", "--max-length", "2"], ["no row is left", "too long: "]),
        (["--models", "BASE", "--tasks", "TASKS", "--json", "no/such/r.json"], ["no folder no/such; create it"]),
        (["--models", "BASE", "--tasks", "missing.jsonl"], ["missing.jsonl"]),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    small_base: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    given = [word.replace("BASE", str(small_base)).replace("TASKS", str(tasks_file)) for word in words]
    assert main(["evaluate-tasks", *given, "--device", "cpu"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("triptych: ") and all(part in told for part in parts), told


def test_a_base_that_pads_with_its_eos_is_evaluated_as_it_was_published(tasks_file: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(pad_token="<|im_end|>")
    model = tiny_llama(tokenizer, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    words = ["--models", str(tmp_path / "base"), "--tasks", str(tasks_file), "--rows", "2", "--max-new-tokens", "4"]
    report = tmp_path / "report.json"
    assert main(["evaluate-tasks", *words, "--device", "cpu", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["models"][str(tmp_path / "base")]["template"] == "plain/1"
