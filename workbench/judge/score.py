"""`triptych score MODEL FILE`: copy a file of rows, in order, with a reward model's score or scores added to each.

If the command is interrupted, repeat it to continue: rows are scored in fixed chunks, so the output is unaffected.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_schema import Comparison, DataError, Demonstration, Prompt, Record
from data_schema.errors import printable
from data_schema.files import rows_or_errors
from data_schema.formats.general.single import is_pair
from data_schema.formats.parts import Drop, Origin, prompt_of
from data_schema.formats.rows import MARKED
from data_schema.formats.table import FORMATS, check_format_name, recognise
from data_schema.records import check_list, check_text
from pipeline.terminal.arguments import Arguments, count
from stages.errors import ConfigError
from stages.progress import progress
from workbench.judge.scorer import Asked, Scored, Scorer, open_scorer, score_answers

logger = logging.getLogger("triptych.score")
CHUNK = 256  # rows written at a time; an interruption loses at most one chunk
PARTIAL, STATE = ".partial", ".state.json"
Row = Mapping[str, Any]


class Question(NamedTuple):
    """What to score in a row, and which columns to add."""

    asked: list[Asked]  # several if one row contains several comparisons (a tree)
    # "score": one number. "scores": a list, in the order of the row's `responses`. "scores and texts": also the list of
    # texts, since the answers' columns have many names. Several comparisons in one row give lists of lists.
    column: Literal["score", "scores", "scores and texts"]


def command(words: Sequence[str]) -> None:
    """Run `triptych score MODEL FILE [--out FILE]`."""
    parser = Arguments("score", __doc__)
    add = parser.add_argument
    add("model", help="reward model: a name such as quickstart/reward_model, a key, or a directory")
    add("file", type=Path, help="rows with prompt and response(s), with messages, or in a known format")
    add("--out", type=Path, help="JSON lines file to write (default: FILE with the ending .scored.jsonl)")
    add("--format", default="auto", help="data format of the rows (default: detected from each row's columns)")
    parser.add_root()
    add(
        "--on-bad-row",
        choices=("error", "null"),
        default="error",
        help="error (default): stop at a row that cannot be scored; null: keep it with score null and the reason in "
        "score_error. Known-unusable rows of a format (ties, empty answers) are always kept this way",
    )
    add("--batch-size", type=count, default=32, help="number of answers to score at a time (default: 32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: auto, the GPU if any)")
    options = parser.parse_args(words)
    check_format_name(options.format)
    stem = Path(options.file.name.removesuffix(".gz")).stem
    out = options.out or options.file.with_name(f"{stem}.scored.jsonl")
    if out.suffix != ".jsonl":
        raise ConfigError(f"cannot write {out}: scores are written as JSON lines; give --out a name ending in .jsonl")
    next(rows_or_errors(options.file), None)  # report a missing or unreadable file before loading the model
    if out.exists() and out.samefile(options.file):
        raise ConfigError(f"{out} is the input file; give --out another name")
    score_file(open_scorer(options.model, options.root, options.device), options, out)


def score_file(scorer: Scorer, options: argparse.Namespace, out: Path) -> None:
    """Write `out`. Continues from the partial file of an interrupted call with the same model, file and settings."""
    partial, state_file = out.with_name(out.name + PARTIAL), out.with_name(out.name + STATE)
    with options.file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    state = {
        "model": scorer.fingerprint,
        "file": digest,
        "format": options.format,
        "on_bad_row": options.on_bad_row,
        "batch_size": options.batch_size,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    # Rows written before an error are the same with --on-bad-row null, so they can be reused.
    done = lines_done(partial) if _read_json(state_file) in (state, {**state, "on_bad_row": "error"}) else 0
    if not done:
        partial.write_bytes(b"")
    state_file.write_text(json.dumps(state))
    logger.info("score: %s with %s%s", options.file, scorer.name, f", continuing after row {done}" if done else "")
    rows = islice(rows_or_errors(options.file), done, None)
    unscored: Counter[str] = Counter()
    with partial.open("ab") as stream, progress(desc="score", unit="row", initial=done) as bar:
        while chunk := list(islice(rows, CHUNK)):
            for line in score_rows(scorer, chunk, options, unscored):
                stream.write(line)
            stream.flush()
            bar.update(len(chunk))
        os.fsync(stream.fileno())
    os.replace(partial, out)
    state_file.unlink()
    if unscored:
        told = ", ".join(f"{count} ({reason})" for reason, count in unscored.items())
        logger.warning("score: rows without a score, by reason: %s", told)
    print(printable(str(out)))


def lines_done(partial: Path) -> int:
    """Cut an interrupted output to whole chunks, as its last lines may be damaged; return the number of lines left."""
    if not partial.exists():
        return 0
    ends, done = [0], 0
    with partial.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            done += 1
            if done % CHUNK == 0:
                ends.append(stream.tell())
        stream.truncate(ends[-1])
    return (len(ends) - 1) * CHUNK


def score_rows(
    scorer: Scorer, rows: Sequence[tuple[int, Row | DataError]], options: argparse.Namespace, unscored: Counter[str]
) -> Iterator[bytes]:
    """Yield one line of JSON per row. Raises DataError if a row cannot be scored, unless --on-bad-row is null."""
    questions = [_question_or_error(number, row, options) for number, row in rows]
    asked = [one for question in questions if isinstance(question, Question) for one in question.asked]
    answers = iter(score_answers(scorer, asked, options.batch_size))
    for (number, row), question in zip(rows, questions, strict=True):
        added: dict[str, Any] | DataError | Drop
        if isinstance(question, Question):
            added = added_columns(question, [next(answers) for _ in question.asked])
        else:
            added = question
        if isinstance(added, DataError) and options.on_bad_row == "error":
            place = "" if added is row else f"{options.file}:{number}: "
            raise DataError(f"{place}{added}; fix or delete the row, or set --on-bad-row null", reason=added.reason)
        if isinstance(added, DataError | Drop):
            unscored[added.reason] += 1
            added = {"score": None, "score_error": added.reason}
        kept = {} if isinstance(row, DataError) else row
        yield json_line({**kept, **added})


def json_line(row: Row) -> bytes:
    """Encode a row as a line of UTF-8, or as escaped ASCII if it contains half a surrogate pair."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"


def _question_or_error(number: int, row: Row | DataError, options: argparse.Namespace) -> Question | Drop | DataError:
    if isinstance(row, DataError):
        return row
    try:
        return question_of(row, Origin(f"{options.file.name}:{number}", str(options.file)), options.format)
    except DataError as error:
        return error


def question_of(row: Row, origin: Origin, form: str = "auto") -> Question | Drop:
    """Return a row's prompt and answers, or a Drop if its format is known to contain such unusable rows. Raises
    DataError if the row has no answer to score."""
    if form == "auto" and row.get("prompt") is not None and "response" in row:
        answer = check_text(row["response"], "response")
        return Question([(Prompt(*origin, prompt=prompt_of(row)).prompt, [answer])], "score")
    if form == "auto" and row.get("prompt") is not None and "responses" in row:
        texts = [
            check_text(text, f"responses[{i}]") for i, text in enumerate(check_list(row["responses"], "responses"))
        ]
        if not texts:
            raise DataError("'responses' is empty; there is nothing to score", field="responses")
        return Question([(Prompt(*origin, prompt=prompt_of(row)).prompt, texts)], "scores")
    form = (single_answer(row) or recognise(row)) if form == "auto" else form
    chosen = FORMATS[form]
    kind = Comparison if Comparison in chosen.readers and form not in SINGLE else Demonstration
    if kind not in chosen.readers:
        raise DataError(f"format '{form}' has no answer to score; the row has {', '.join(row)}", reason="no answer")
    outcomes: list[Record | Drop] = []
    for _, whole in chosen.gather(iter([(1, row)])) if chosen.gather else [(1, row)]:
        if isinstance(whole, DataError):
            raise whole
        outcome = chosen.readers[kind](whole, origin)
        outcomes += outcome if isinstance(outcome, list) else [outcome]  # type: ignore[list-item]  # of the kind read
    asked = [_asked(record) for record in outcomes if isinstance(record, Comparison | Demonstration)]
    if not asked:
        return next((outcome for outcome in outcomes if isinstance(outcome, Drop)), Drop("no answer"))
    return Question(asked, "scores and texts" if kind is Comparison else "score")


SINGLE = ("messages", "prompt_completion", "alpaca", "pair", "conversation")  # formats with one answer per row


def single_answer(row: Row) -> str | None:
    """Return the format of a row with one answer, even if the row also has a verdict on it (KTO); else None."""
    if "chosen" in row and "rejected" in row:
        return None
    if isinstance(row.get("messages"), list):
        return "messages"
    if "completion" in row and "prompt" in row:
        return "prompt_completion"
    if "instruction" in row and isinstance(row.get("output"), str):
        return "alpaca"
    if recognise(row) not in MARKED:
        return None
    return "pair" if is_pair(row) else "conversation"


def _asked(record: Comparison | Demonstration) -> Asked:
    if isinstance(record, Comparison):
        return record.prompt, record.responses
    return record.messages[:-1], [record.messages[-1].content]


def added_columns(question: Question, scored: Sequence[Scored | str]) -> dict[str, Any] | DataError:
    """Return the columns to add to a row."""
    for one in scored:
        if isinstance(one, str):
            return DataError(one, reason=one)
    scores = [one.scores for one in scored if isinstance(one, Scored)]
    if question.column == "score":
        return {"score": scores[0][0]}
    if question.column == "scores":
        return {"scores": scores[0]}
    texts = [list(answers) for _, answers in question.asked]
    single = len(texts) == 1
    return {"scored_responses": texts[0] if single else texts, "scores": scores[0] if single else scores}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
