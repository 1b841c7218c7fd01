"""Evaluates several models on the same rows of tasks, zero- or few-shot.

In tasks with answer choices, the choice with the highest log-likelihood is the answer (T0, Sanh et al. 2021, 6; FLAN,
Wei et al. 2021, 2.3). In other tasks the model writes an answer, which is measured by exact match and ROUGE-L
(Super-NaturalInstructions, Wang et al. 2022, 5). A row that does not fit one model is left out for all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint_store import Root, open_store
from pipeline.terminal.console import visible
from stages.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_schema import Source
    from policy.answer_likelihood import Question
    from policy.sampling.greedy import GreedyAnswer
    from workbench.tasks.data import Example, Task
    from workbench.tasks.models import Reader

RANK, EXACT, ROUGE = "rank accuracy", "exact match", "ROUGE-L"
METRICS = {"rank": (RANK,), "text": (EXACT, ROUGE)}


@dataclass(frozen=True)
class TaskEvaluation:
    """The settings of an evaluation: what to measure, and how."""

    models: tuple[str, ...]
    tasks: tuple[Source, ...]
    shots: int = 0
    choices: str = "meta"
    max_choices: int = 20
    per_token: bool = False
    rows: int | None = None
    by: str | None = None
    template: str | None = None
    max_length: int = 1024
    max_new_tokens: int = 64
    tokens_at_once: int = 8192
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_choices", "rows", "max_length", "max_new_tokens", "tokens_at_once", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.shots < 0:
            raise ConfigError(f"--shots is {self.shots}; it must be at least 0")
        names = [name_and_model(named)[0] for named in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(f"--models: two are called {Counter(names).most_common(1)[0][0]}; rename one: NAME=MODEL")


def name_and_model(named: str) -> tuple[str, str]:
    """Split NAME=MODEL into (name, model); a MODEL without a name is its own name."""
    name, given, model = named.partition("=")
    return (name, model) if given and name and not Path(named).is_dir() else (named, named)


class Row(NamedTuple):
    answer: str  # of one model to one example
    scores: dict[str, float]  # metric -> score from 0 to 1; 1 is right
    detail: dict[str, Any]


class Evaluation(NamedTuple):
    readers: list[Reader]
    tasks: list[Task]
    rows: dict[str, list[list[Row]]]  # model -> task -> example
    left_out: dict[str, int]


def evaluate_tasks(config: TaskEvaluation, root: Root) -> Evaluation:
    """Evaluate the models. Errors in data or models are raised before any weights are loaded."""
    from data_schema import Demonstration, load_all
    from policy.language_model import choose_device
    from stages.job import read_seen_prompts
    from workbench.tasks.data import ChoiceRule, build_tasks
    from workbench.tasks.models import open_reader

    device = choose_device(config.device)
    store = open_store(root)
    readers = [open_reader(*name_and_model(named), store, config.template) for named in config.models]
    seen = read_seen_prompts(Path(reader.source) for reader in readers)
    records = load_all(config.tasks, Demonstration, config.seed)
    tasks, left_out = build_tasks(
        records,
        by=config.by,
        rule=ChoiceRule(config.choices, config.max_choices),
        shots=config.shots,
        rows=config.rows,
        seen=seen,
        seed=config.seed,
    )
    tasks, questions = fitting(tasks, readers, config, left_out)
    left_out = +(left_out + Counter(records.dropped))
    if not tasks:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no rows"
        raise ConfigError(f"--tasks: no row is left to evaluate on ({reasons}); give other tasks or models")
    rows = {}
    for reader in readers:
        model = reader.load(device)
        with progress_bar(reader.name, sum(len(task.examples) for task in tasks)) as tell:
            rows[reader.name] = measure(reader, model, tasks, questions[reader.name], config, tell)
        del model  # so that only one is in memory at a time
    return Evaluation(readers, tasks, rows, dict(left_out))


def fitting(
    tasks: Sequence[Task], readers: Sequence[Reader], config: TaskEvaluation, left_out: Counter[str]
) -> tuple[list[Task], dict[str, list[list[Question]]]]:
    """Return (tasks with the examples that fit every model, model -> task -> their ids); count the others."""
    kept_tasks: list[Task] = []
    questions: dict[str, list[list[Question]]] = {reader.name: [] for reader in readers}
    for task in tasks:
        examples, encoded = [], []
        for example in task.examples:
            read = [reader.encode(example) for reader in readers]
            if all(fits(question, reader, config) for question, reader in zip(read, readers, strict=True)):
                examples.append(example)
                encoded.append(read)
        left_out["too long"] += len(task.examples) - len(examples)
        if examples:
            kept_tasks.append(task._replace(examples=examples))
            for place, reader in enumerate(readers):
                questions[reader.name].append([read[place] for read in encoded])
    return kept_tasks, questions


def fits(question: Question, reader: Reader, config: TaskEvaluation) -> bool:
    behind = max(map(len, question.answers), default=config.max_new_tokens)
    return len(question.prompt) + behind <= min(config.max_length, reader.most_tokens)


def measure(
    reader: Reader,
    model: Any,
    tasks: Sequence[Task],
    questions: Sequence[Sequence[Question]],
    config: TaskEvaluation,
    tell: Callable[[int], object],
) -> list[list[Row]]:
    """Return the rows of each task. All tasks are batched together, so that rows of similar length share a batch."""
    from policy.answer_likelihood import answer_logprobs
    from policy.sampling.greedy import greedy_answers

    ranked = [q for task, part in zip(tasks, questions, strict=True) if task.choices_from for q in part]
    written = [q.prompt for task, part in zip(tasks, questions, strict=True) if not task.choices_from for q in part]
    sums = iter(answer_logprobs(model, ranked, config.tokens_at_once, tell))
    answers = iter(
        greedy_answers(
            model,
            reader.tokenizer,
            written,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            progress=tell,
        )
    )
    rows = []
    for task, part in zip(tasks, questions, strict=True):
        if task.choices_from:
            rows.append([rank(example, q, next(sums), config) for example, q in zip(task.examples, part, strict=True)])
        else:
            rows.append([compare(example, next(answers)) for example in task.examples])
    return rows


def rank(example: Example, question: Question, sums: Sequence[float], config: TaskEvaluation) -> Row:
    """Choose the answer with the highest log-likelihood: the sum over its tokens (T0), or their mean."""
    lengths = [len(ids) if config.per_token else 1 for ids in question.answers]
    scores = [total / length for total, length in zip(sums, lengths, strict=True)]
    chosen = example.choices[scores.index(max(scores))]
    detail = dict(zip(example.choices, scores, strict=True))
    return Row(chosen, {RANK: float(chosen in example.references)}, detail)


def compare(example: Example, answer: GreedyAnswer) -> Row:
    from workbench.tasks.metrics import exact_match, rouge_l

    found = {EXACT: exact_match(answer.text, example.references), ROUGE: rouge_l(answer.text, example.references)}
    return Row(answer.text, found, {"ended": answer.ended})


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    from stages.progress import progress

    with progress(total=total, desc=visible(name), unit="row") as bar:
        yield bar.update


def write_samples(path: Path, evaluation: Evaluation) -> None:
    """Write one JSON line per row: the correct answers, and what each model answered."""
    with path.open("w", encoding="utf-8") as file:
        for place, task in enumerate(evaluation.tasks):
            for i, example in enumerate(task.examples):
                told: Mapping[str, Any] = {
                    "task": task.name,
                    "id": example.id,
                    "prompt": example.prompt[-1].content,
                    "references": example.references,
                    "answers": {
                        name: {
                            "answer": rows[place][i].answer,
                            **rows[place][i].scores,
                            "detail": rows[place][i].detail,
                        }
                        for name, rows in evaluation.rows.items()
                    },
                }
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
