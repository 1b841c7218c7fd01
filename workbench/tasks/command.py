"""`triptych evaluate-tasks`: compare models on tasks; reads the options and prints the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_schema import Source
from pipeline.terminal.arguments import Arguments, seed
from stages.errors import ConfigError
from workbench.tasks.evaluation import TaskEvaluation, evaluate_tasks, write_samples

SETTINGS = {field.name for field in fields(TaskEvaluation)} - {"models", "tasks"}


def command(words: Sequence[str]) -> None:
    """Run `triptych evaluate-tasks --models NAME=MODEL ... --tasks SOURCE ...`."""
    options = parser().parse_args(words)
    from pipeline.runner import quiet_libraries
    from workbench.tasks.report import as_json, print_report

    for path in filter(None, (options.json, options.samples)):
        if not path.parent.is_dir():  # checked now, not after hours of evaluation
            raise ConfigError(f"{path}: cannot be written, as there is no folder {path.parent}; create it")
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


def parser() -> Arguments:
    made = Arguments(
        "evaluate-tasks",
        "Compare models on held-out tasks, zero- or few-shot: rank classification, exact match, ROUGE-L. "
        "Differences are taken from the first model.",
    )
    add, default = made.add_argument, TaskEvaluation
    add("--models", nargs="+", required=True, metavar="NAME=MODEL", help="models: folder, store name, or hub name")
    add("--tasks", nargs="+", required=True, metavar="SOURCE", help="files, folders or data sets of demonstrations")
    add("--shots", type=int, default=default.shots, help="exemplars of the task before each question (default: 0)")
    add(
        "--choices",
        choices=("meta", "from-targets", "none"),
        default=default.choices,
        help="choices to rank: a row's answer_choices (meta, the default); if it has none, the task's distinct targets "
        "(from-targets); or never rank (none)",
    )
    add("--max-choices", type=int, default=default.max_choices, help="maximum targets to take as choices (default: 20)")
    add("--score", choices=("sum", "mean"), default="sum", help="sum (default) or mean of token log-probabilities")
    add("--rows", type=int, metavar="N", help="evaluate at most N rows per task, sampled (default: all)")
    add("--by", metavar="FIELD", help="meta field that names a row's task (default: task, task_name, or the file)")
    add("--template", metavar="NAME", help="template for all models (default: each model's own, else plain)")
    add("--max-length", type=int, default=default.max_length, help="leave out longer rows (default: 1024 tokens)")
    add("--max-new-tokens", type=int, default=default.max_new_tokens, help="maximum tokens per answer (default: 64)")
    add("--tokens-at-once", type=int, default=default.tokens_at_once, help="tokens per ranking batch (default: 8192)")
    add("--batch-size", type=int, default=default.batch_size, help="answers to write at a time (default: 16)")
    add("--format", default="auto", help="data format, from docs/data_formats.md (default: detected)")
    add("--split", default="train", help="split of hub data sets and Python functions (default: train)")
    add("--limit", type=int, help="rows to read per source (default: all)")
    add("--on-bad-row", choices=("error", "drop"), default="error", help="stop at an unusable row (default) or drop it")
    add("--seed", type=seed, default=default.seed, help="seed for sampling rows and exemplars (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default=default.device, help="device (default: auto, GPU if any)")
    made.add_root()
    add("--json", type=Path, metavar="FILE", help="write the report to FILE")
    add("--samples", type=Path, metavar="FILE", help="write every row with its answers to FILE, as JSON lines")
    return made
