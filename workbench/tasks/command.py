"""The command line of `triptych evaluate-tasks`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_schema import Source
from stages.errors import ConfigError
from workbench.tasks.evaluation import TaskEvaluation, evaluate_tasks, write_samples

SETTINGS = {field.name for field in fields(TaskEvaluation)} - {"models", "tasks"}


def command(words: Sequence[str]) -> None:
    """`triptych evaluate-tasks --models NAME=MODEL ... --tasks SOURCE ...`"""
    options = parser().parse_args(words)
    from pipeline.runner import quiet_libraries
    from workbench.tasks.report import as_json, print_report

    for path in filter(None, (options.json, options.samples)):
        if not path.parent.is_dir():  # after the work would be too late
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} into; make it")
    source_settings = {"format": options.format, "split": options.split, "on_bad_row": options.on_bad_row}
    config = TaskEvaluation(
        models=tuple(options.models),
        tasks=tuple(Source(path, limit=options.limit, **source_settings) for path in options.tasks),
        per_token=options.score == "mean",
        **{name: value for name, value in vars(options).items() if name in SETTINGS},
    )
    quiet_libraries()
    evaluation = evaluate_tasks(config, options.root)
    report = as_json(evaluation, config)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.samples:
        write_samples(options.samples, evaluation)
    print_report(report)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="triptych evaluate-tasks",
        allow_abbrev=False,
        description="Compare models on held-out tasks: rank classification, exact match, ROUGE-L. The first is the one "
        "the others are compared with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, default = made.add_argument, TaskEvaluation
    add("--models", nargs="+", required=True, metavar="NAME=MODEL", help="directory, name in the store, or hub name")
    add("--tasks", nargs="+", required=True, metavar="SOURCE", help="files, folders or data sets of demonstrations")
    add("--shots", type=int, default=default.shots, help="exemplars of the same task before each question")
    add(
        "--choices",
        choices=("meta", "from-targets", "none"),
        default=default.choices,
        help="meta: rows' answer_choices; from-targets: or a task's distinct targets if few; none: nothing is ranked",
    )
    add("--max-choices", type=int, default=default.max_choices, help="distinct targets that are still choices")
    add("--score", choices=("sum", "mean"), default="sum", help="of a choice's log-likelihood, over its tokens")
    add("--rows", type=int, metavar="N", help="of a task at most, drawn by the seed (default: all)")
    add("--by", metavar="FIELD", help="meta's field that names the task (default: task, task_name, or the file)")
    add("--template", metavar="NAME", help="of all models (default: each one's own, or plain if it has none)")
    add("--max-length", type=int, default=default.max_length, help="tokens of a row; longer ones are left out")
    add("--max-new-tokens", type=int, default=default.max_new_tokens, help="of a written answer")
    add("--tokens-at-once", type=int, default=default.tokens_at_once, help="read at once while ranking: memory")
    add("--batch-size", type=int, default=default.batch_size, help="answers written at once")
    add("--format", default="auto", help="of the tasks' rows (docs/data_formats.md)")
    add("--split", default="train", help="of hub data sets and Python functions")
    add("--limit", type=int, help="rows read of each source (default: all)")
    add("--on-bad-row", choices=("error", "drop"), default="error", help="what a row that cannot be read does")
    add("--seed", type=int, default=default.seed, help="of drawn rows and exemplars")
    add("--device", choices=("auto", "cpu", "cuda"), default=default.device, help="where the models run")
    add("--root", type=Path, default=Path("out"), help="where checkpoints are kept")
    add("--json", type=Path, metavar="FILE", help="write the report there")
    add("--samples", type=Path, metavar="FILE", help="write every row with its answers there, as JSON lines")
    return made
