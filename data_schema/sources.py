"""Sources: where records come from (a file, a hub data set, a Python function), and how they are read."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from data_schema.errors import DataError
from data_schema.files import Row, file_ending, rows_or_errors
from data_schema.format_parts import Drop, Origin, Reader
from data_schema.formats import FORMATS, check_format_name, reader_for, recognise
from data_schema.locations import (
    HubLocation,
    PythonLocation,
    hub_revision,
    hub_rows,
    locate,
    python_files,
    python_function,
)
from data_schema.records import KIND_NAMES, R
from data_schema.table import Records, concatenate

log = logging.getLogger("triptych.data")


@dataclass(frozen=True)
class Source:
    """One place to read rows from.

    A relative `path` is looked up from the current folder, then from the folder in the environment variable
    TRIPTYCH_DATA.
    """

    path: str
    """A file, "owner/name" or "owner/name:folder" on the Hugging Face hub, or "python:module:function"."""
    format: str = "auto"
    """A format of docs/data_formats.md, or "auto": told by the first row's columns."""
    split: str = "train"
    """Split of a hub data set, or the argument of a Python function; a file has none."""
    limit: int | None = None
    """Rows read at most after `skip`, dropped ones included, so that skip and limit cut disjoint pieces."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What a row that cannot be used does: stop with an error, or be dropped, counted and logged."""
    skip: int = 0
    """Rows passed over first."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise DataError("path is empty; name a file, a hub data set or python:module:function", field="path")
        check_format_name(self.format)
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit must be at least 1, found {self.limit}; leave it out to read all", field="limit")
        if self.skip < 0:
            raise DataError(f"skip must not be negative, found {self.skip}", field="skip")
        if self.on_bad_row not in ("error", "drop"):
            raise DataError(f"on_bad_row must be error or drop, found '{self.on_bad_row}'", field="on_bad_row")


def load(source: Source, kind: type[R], seed: int = 0) -> Records[R]:
    """The records of a source. `seed` goes to Python functions; files and hub data sets do not depend on it.

    Raises DataError naming source, row, field and cure: for the first bad row (unless on_bad_row is "drop"), and when
    no row is left.
    """
    location = locate(source.path)
    dropped: Counter[str] = Counter()
    mark = fingerprint(source, seed)
    if isinstance(location, PythonLocation):
        form, read = "python", _call(location, source, kind, seed)
    else:
        form, read = _read(location, source, kind, dropped)
    records = Records.of(kind, read, format=form, fingerprint=mark, dropped=dropped)
    told = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
    if not len(records):
        why = (
            f"all were dropped ({told})" if dropped else "there are no rows (after skip)" if source.skip else "no rows"
        )
        raise DataError(f"{source.path}: no {KIND_NAMES[kind]} left: {why}", field="path")
    log.info(
        "%s: format %s, %d %s, dropped %d%s",
        source.path, form, len(records), KIND_NAMES[kind], sum(dropped.values()), f" ({told})" if told else "",
    )  # fmt: skip
    return records


def load_all(sources: Sequence[Source], kind: type[R], seed: int = 0) -> Records[R]:
    """The records of several sources, one source after another; equal ids are told apart, counts of drops added."""
    if not sources:
        raise DataError(f"no source for {KIND_NAMES[kind]}; name at least one")
    return concatenate([load(source, kind, seed) for source in sources])


def fingerprint(source: Source, seed: int = 0) -> str:
    """A digest that changes when the source's records may change, without reading rows.

    A file gives its bytes; a Python function its module's source (with the modules beside it that it imports) and the
    seed; a hub data set its name and, where it can be found out, its revision.
    """
    location = locate(source.path)
    settings = {key: value for key, value in asdict(source).items() if key != "path"}
    if isinstance(location, PythonLocation):
        settings |= {"function": location.function, "seed": seed}
        contents = [path.read_bytes() for path in python_files(location.module)]
    elif isinstance(location, HubLocation):
        settings |= {"name": location.name, "folder": location.folder, "revision": hub_revision(location.name)}
        contents = []
    else:
        settings["ending"] = file_ending(location.name)
        with open(location, "rb") as stream:
            contents = [hashlib.file_digest(stream, "sha256").digest()]
    return _digest(json.dumps(settings, sort_keys=True).encode(), *contents)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _call(location: PythonLocation, source: Source, kind: type[R], seed: int) -> Iterator[R]:
    stop = None if source.limit is None else source.skip + source.limit
    made = python_function(location)(split=source.split, limit=stop, seed=seed)
    for record in islice(made, source.skip, stop):
        if not isinstance(record, kind):
            raise DataError(f"{source.path}: gave {type(record).__name__} where {KIND_NAMES[kind]} are wanted")
        yield record


def _read(
    location: Path | HubLocation, source: Source, kind: type[R], dropped: Counter[str]
) -> tuple[str, Iterator[R]]:
    """(format, records) of a file or hub data set; `dropped` is counted while the records are taken."""
    rows: Iterator[tuple[int, Row | DataError]]
    rows = hub_rows(location, source.split) if isinstance(location, HubLocation) else rows_or_errors(location)
    rows = islice(rows, source.skip, None if source.limit is None else source.skip + source.limit)
    # The format is told by the first row that can be read; those before it are kept for their errors.
    start: list[tuple[int, Row | DataError]] = []
    for item in rows:
        start.append(item)
        if not isinstance(item[1], DataError):
            break
    form, first = source.format, start[-1][1] if start else None
    reader: Reader | None = None
    if first is not None and not isinstance(first, DataError):
        try:
            form = recognise(first) if form == "auto" else form
            reader = reader_for(form, kind)
        except DataError as error:
            raise DataError(f"{source.path}: {error}", field=error.field) from None
    stem = location.stem if isinstance(location, HubLocation) else Path(location.name.removesuffix(".gz")).stem

    def records() -> Iterator[R]:
        for number, row in chain(start, rows):
            try:
                if isinstance(row, DataError):
                    raise row
                assert reader is not None
                for column in FORMATS[form].columns - row.keys():
                    found = ", ".join(row) or "no columns"
                    raise DataError(f"'{column}' is missing; the row has {found}", field=column)
                outcome = reader(row, Origin(f"{stem}:{number}", source.path))
            except DataError as error:
                if source.on_bad_row == "drop":
                    dropped[error.reason] += 1
                    continue
                place = "" if error is row else f"{source.path}:{number}: "
                raise DataError(
                    f"{place}{error}; mend or delete the row, or set on_bad_row: drop",
                    field=error.field,
                    reason=error.reason,
                ) from None
            for record in outcome if isinstance(outcome, list) else [outcome]:
                if isinstance(record, Drop):
                    dropped[record.reason] += 1
                else:
                    assert isinstance(record, kind)
                    yield record

    return form, records()
