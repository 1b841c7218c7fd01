"""`triptych data inspect SOURCE...`: report what data sets contain and what is wrong with them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schema import Comparison, DataError, Demonstration, Document, Prompt, Records, Source, load, load_all
from data_schema.errors import printable
from data_schema.records import KIND_NAMES
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import as_json, screen
from stages.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.data_checks.inspection import Tokens

# The most specific kind first: a comparison can also be read as a demonstration and as a prompt.
KINDS: tuple[type, ...] = (Comparison, Demonstration, Document, Prompt)
FIRST_LOOK = 200  # rows read to detect the kind
NEXT_TO_NOTHING = 0.1  # share of the rows; a kind that fewer rows give is passed over
FUNCTION_ROWS = 1000  # read from a Python function, which may never end
MAX_LENGTH = 1024  # tokens, the default of sft.max_length


def command(words: Sequence[str]) -> None:
    """Run `triptych data ...`. Raises DataError, ModelError or ConfigError if an argument cannot be used."""
    options = _parser().parse_args(_after_inspect(words))
    with _quiet():
        inspect(options)


def inspect(options: argparse.Namespace) -> None:
    """Examine the sources and print the report."""
    sources = sources_of(options.sources, options, options.format)
    kind = {name: kind for kind, name in KIND_NAMES.items()}.get(options.kind)
    chosen, passed_over = (kind, None) if kind else best_kind(sources[0])
    records: Records[Any] = load_all(sources, chosen)
    stops = first_error(sources, chosen) if records.dropped else None
    against: Records[Any] | None = None
    if options.against:
        others = sources_of(options.against, options, "auto")
        against = load_all(others, best_kind(others[0])[0])
    tokens = None
    if options.tokenizer:
        tokens = load_tokens(options.tokenizer, options.template, options.pad_token)
    max_length = options.max_length or (MAX_LENGTH if tokens else None)
    if records.kind is Document:
        max_length = None  # documents are cut into rows, so none is too long

    from stages.data_checks.inspection import examine

    report = examine(records, options.sources, tokens, max_length, against, stops=stops, passed_over=passed_over)
    rows: list[Any] = []
    if not options.json or options.html:
        from workbench.inspect.view import html_page, print_report, views

        rows = list(views((records[i] for i in range(min(options.rows, len(records)))), tokens))
    if options.html:
        try:
            options.html.write_text(html_page(report, rows), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--html {options.html}: cannot be written ({error.strerror}); give another file name"
            ) from None
    if options.json:
        print(as_json(report.as_json()))
        return
    print_report(report, rows, screen())
    if options.html:
        print(f"Written: {printable(str(options.html))}")


def sources_of(paths: Sequence[str], options: argparse.Namespace, form: str) -> list[Source]:
    """The sources to read; bad rows are dropped and counted."""
    sources = []
    for path in paths:
        limit = options.limit or (FUNCTION_ROWS if path.startswith("python:") else None)
        sources.append(Source(path, format=form, split=options.split, limit=limit, on_bad_row="drop"))
    return sources


def first_error(sources: Sequence[Source], kind: type) -> str | None:
    """The error at which a run would stop, in one line; None if it would only leave rows out."""
    try:
        load_all([replace(source, on_bad_row="error") for source in sources], kind)
    except DataError as error:
        return str(error)
    return None


def best_kind(source: Source) -> tuple[type, str | None]:
    """-> (the first of KINDS that at least NEXT_TO_NOTHING of the rows give, why the rows give no record of a more
    specific kind that their format has).

    A few labelled single answers may pair up by chance, which does not make a source of comparisons. Raises DataError
    if no row can be read as any kind."""
    for limit in (min(FIRST_LOOK, source.limit or FIRST_LOOK), source.limit):  # all rows, if the first ones are bad
        scant: type | None = None
        errors: dict[type, DataError] = {}
        for kind in KINDS:
            if kind is Prompt and scant is not None:
                break  # nearly any row can be read as a prompt
            try:
                records: Records[Any] = load(replace(source, limit=limit), kind)
            except DataError as error:
                errors[kind] = error
                continue
            if len(records) >= NEXT_TO_NOTHING * (len(records) + sum(records.dropped.values())):
                return kind, next((str(error) for error in errors.values() if error.field != "format"), None)
            scant = scant or kind
        if scant is not None:
            return scant, None
    raise _why_nothing(source, errors)


def _why_nothing(source: Source, errors: Mapping[type, DataError]) -> DataError:
    """The error that says best why no kind of record can be read, given each kind's error."""
    # The others say only that the format cannot give this kind.
    about_rows = {kind: error for kind, error in errors.items() if error.field != "format"}
    for kind, error in about_rows.items():
        if "no rows" in str(error):
            return DataError(f"{source.path}: there are no rows in it; check the file", field="path")
        return DataError(first_error([source], kind) or str(error))
    return next(iter(errors.values()))


def load_tokens(name: str, template: str | None, pad_token: str | None) -> Tokens:
    """Load the tokenizer and set its template: the one that is named, else its own, else "plain"."""
    from policy.encoding import set_template
    from stages.data_checks.inspection import Tokens

    tokenizer = _load_tokenizer(name)
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    return Tokens(
        tokenizer, name, set_template(tokenizer, template or ("tokenizer" if tokenizer.chat_template else "plain"))
    )


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, or one that was saved without a model."""
    from policy.errors import first_line
    from policy.language_model import load_tokenizer

    here = Path(name)
    if (here / "config.json").is_file() or not (here / "tokenizer_config.json").is_file():
        return load_tokenizer(name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, padding_side="left", clean_up_tokenization_spaces=False, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tokenizer {name}: cannot be loaded ({first_line(error)}); give a directory in Hugging Face layout"
        ) from error


def _after_inspect(words: Sequence[str]) -> Sequence[str]:
    """The words after `inspect`, the one action that `triptych data` has; those for help as they are."""
    if words and words[0] == "inspect":
        return words[1:]
    if words and words[0] in ("-h", "--help"):
        return words
    found = f"not '{words[0]}'" if words else "followed by what to inspect"
    raise ConfigError(f"data: write 'triptych data inspect SOURCE', {found}")


def _parser() -> Arguments:
    inspecting = Arguments(
        "data inspect", "Report what data sets contain and what is wrong with them. Bad rows are dropped and counted."
    )
    add = inspecting.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="file, hub data set owner/name, or python:module:function")
    add("--format", default="auto", help="data format, from docs/data_formats.md (default: detected from the columns)")
    add("--split", default="train", help="split of hub data sets and Python functions (default: train)")
    add("--limit", type=_positive, metavar="N", help="rows to read per source (default: all; of a function 1000)")
    add("--kind", choices=KIND_NAMES.values(), help="kind of record to read the rows as (default: detected)")
    add("--tokenizer", metavar="DIR_OR_NAME", help="count tokens, check template and loss mask with this tokenizer")
    add("--template", help="chat template to check (default: the tokenizer's own, else plain)")
    add("--pad-token", metavar="TOKEN", help="padding token to set, as sft.pad_token does")
    add("--max-length", type=_positive, metavar="N", help="count longer rows (default with a tokenizer: 1024 tokens)")
    add("--against", nargs="+", metavar="SOURCE", help="other data, such as a test set, to check for shared prompts")
    add("--rows", type=_count, default=2, metavar="N", help="show the first N rows with their loss mask (default: 2)")
    add("--html", type=Path, metavar="FILE", help="also write the report as an HTML page")
    add("--json", action="store_true", help="print only the report, as one JSON object")
    return inspecting


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"'{word}' is not a count; give a whole number, 0 or more")
    return int(word)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number above 0; give 1 or more")
    return int(word)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the data loader's log: the report contains the same."""
    logger = logging.getLogger("triptych.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
