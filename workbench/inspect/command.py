"""`triptych data inspect SOURCE...`: the data doctor on the command line."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schema import Comparison, DataError, Demonstration, Document, Prompt, Records, Source, load, load_all
from data_schema.records import KIND_NAMES
from stages.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.data_checks.inspection import Tokens

# What a format gives best stands first: a pair is also a demonstration and a prompt.
KINDS: tuple[type, ...] = (Comparison, Demonstration, Document, Prompt)
FIRST_LOOK = 200  # rows by which the kind is told
NEXT_TO_NOTHING = 0.1  # of the rows
FUNCTION_ROWS = 1000  # of a Python function, which may have no end
MAX_LENGTH = 1024  # as sft.max_length


def command(words: Sequence[str]) -> None:
    """`triptych data ...`. Raises DataError, ModelError or ConfigError for what cannot be used."""
    options = _parser().parse_args(words)
    with _quiet():
        inspect(options)


def inspect(options: argparse.Namespace) -> None:
    """Examine the sources and print the report."""
    kind = {name: kind for kind, name in KIND_NAMES.items()}.get(options.kind)
    records = read(options.sources, options, options.format, kind)
    against = read(options.against, options, "auto", None) if options.against else None
    tokens = None
    if options.tokenizer:
        tokens = load_tokens(options.tokenizer, options.template, options.pad_token)
    max_length = options.max_length or (MAX_LENGTH if tokens else None)
    if records.kind is Document:
        max_length = None  # documents are cut into rows, none is too long

    from stages.data_checks.inspection import examine

    report = examine(records, options.sources, tokens, max_length, against)
    rows: list[Any] = []
    if not options.json or options.html:
        from workbench.inspect.view import html_page, print_report, views

        rows = list(views((records[i] for i in range(min(options.rows, len(records)))), tokens))
    if options.html:
        try:
            options.html.write_text(html_page(report, rows), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--html {options.html}: cannot be written ({error.strerror}); name another file"
            ) from None
    if options.json:
        print(json.dumps(report.as_json(), ensure_ascii=False))
        return
    from rich.console import Console

    print_report(report, rows, Console(highlight=False, markup=False))
    if options.html:
        print(f"Written: {options.html}")


def read(paths: Sequence[str], options: argparse.Namespace, form: str, kind: type | None) -> Records[Any]:
    """The records of all paths, bad rows dropped and counted. Without a kind, the best that the first path gives."""
    sources = []
    for path in paths:
        limit = options.limit or (FUNCTION_ROWS if path.startswith("python:") else None)
        sources.append(Source(path, format=form, split=options.split, limit=limit, on_bad_row="drop"))
    return load_all(sources, kind or best_kind(sources[0]))


def best_kind(source: Source) -> type:
    """The first of KINDS that more than next to nothing of the source gives: of labels of single answers a few may pair
    up by chance. Raises what kept the rows from being of any kind."""
    errors: list[DataError] = []
    for limit in (min(FIRST_LOOK, source.limit or FIRST_LOOK), source.limit):  # its first rows may all be bad
        scant: type | None = None
        for kind in KINDS:
            if kind is Prompt and scant is not None:
                break  # any row asks something
            try:
                records: Records[Any] = load(replace(source, limit=limit), kind)
            except DataError as error:
                errors.append(error)
                continue
            if len(records) >= NEXT_TO_NOTHING * (len(records) + sum(records.dropped.values())):
                return kind
            scant = scant or kind
        if scant is not None:
            return scant
    # That a format cannot give some kind is no fault of the rows.
    raise next((error for error in errors if error.field != "format"), errors[0])


def load_tokens(name: str, template: str | None, pad_token: str | None) -> Tokens:
    """The tokenizer with its template set: the one that is named, or its own, or "plain"."""
    from policy.encoding import set_template
    from stages.data_checks.inspection import Tokens

    tokenizer = _load_tokenizer(name)
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    return Tokens(
        tokenizer, name, set_template(tokenizer, template or ("tokenizer" if tokenizer.chat_template else "plain"))
    )


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, or one that was saved without a model."""
    from policy.language_model import load_tokenizer

    here = Path(name)
    if (here / "config.json").is_file() or not (here / "tokenizer_config.json").is_file():
        return load_tokenizer(name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, padding_side="left", clean_up_tokenization_spaces=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tokenizer {name}: cannot be loaded ({error}); give a directory in Hugging Face layout"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triptych data", allow_abbrev=False, description="Look into data sets.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspecting = actions.add_parser(
        "inspect",
        allow_abbrev=False,
        help="what a data set holds and what is wrong with it",
        description="What a data set holds and what is wrong with it. Bad rows are dropped and counted.",
    )
    add = inspecting.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a file, owner/name on the hub, or python:module:function")
    add("--format", default="auto", help="a format of docs/data_formats.md (default: told by the columns)")
    add("--split", default="train", help="split of a hub data set or a Python function (default: train)")
    add("--limit", type=_positive, metavar="N", help="rows read (default: all; of a Python function 1000)")
    add("--kind", choices=KIND_NAMES.values(), help="read the rows as these (default: the best that the format gives)")
    add("--tokenizer", metavar="DIR_OR_NAME", help="count tokens, check template and loss mask with this tokenizer")
    add("--template", help="its template (default: the tokenizer's own, else plain)")
    add("--pad-token", metavar="TOKEN", help="its padding token, as sft.pad_token")
    add("--max-length", type=_positive, metavar="N", help="count longer rows (default with a tokenizer: 1024 tokens)")
    add("--against", nargs="+", metavar="SOURCE", help="another set, such as for evaluation, that must share no prompt")
    add("--rows", type=_count, default=2, metavar="N", help="show so many rows with their loss mask (default: 2)")
    add("--html", type=Path, metavar="FILE", help="write the report as one HTML page too")
    add("--json", action="store_true", help="print the report as one JSON object, and nothing else")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"'{word}' is no count; give 0 or more")
    return int(word)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"'{word}' is no length; give 1 or more")
    return int(word)


@contextmanager
def _quiet() -> Iterator[None]:
    """The report says what the loader would log."""
    logger = logging.getLogger("triptych.data")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
