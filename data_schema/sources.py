"""Sources: where records come from (files, a hub data set, a Python function), and how they are read."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Literal, NamedTuple

from data_schema.errors import DataError, Drops
from data_schema.files import few, file_ending, rows_or_errors, stem
from data_schema.formats.meaning import meanings
from data_schema.formats.parts import Drop, NumberedRows, Origin, Reader, Row
from data_schema.formats.promptsource import find_templates, prompted
from data_schema.formats.rows import count_unread, suited_rows, unpacked_rows
from data_schema.formats.table import FORMATS, check_format_name, reader_for, recognise_cells, recognise_most
from data_schema.held_out import HeldOutTasks, keep_out
from data_schema.locations import (
    FileLocation,
    HubLocation,
    PythonLocation,
    hub_revision,
    hub_rows,
    locate,
    python_files,
    python_function,
)
from data_schema.reading.separated import first_tsv_cells
from data_schema.records import KIND_NAMES, R
from data_schema.table import Records, concatenate

log = logging.getLogger("triptych.data")
TOLD_BY = 16  # rows by which a format is recognised: a single one may be unusual


@dataclass(frozen=True)
class Source:
    """One place to read rows from.

    A relative `path` is searched in the current folder, then in the folder of the environment variable TRIPTYCH_DATA.
    """

    path: str
    """A file, a folder or glob pattern of files, "owner/name" or "owner/name:folder" on the Hugging Face hub, or
    "python:module:function"."""
    format: str = "auto"
    """Name of a format in docs/data_formats.md. "auto": recognise it by the columns of the first rows."""
    split: str = "train"
    """Split of a hub data set, or of a folder or pattern of files whose names say their splits (docs/data_formats.md);
    the `split` argument of a Python function. Ignored for a single file."""
    limit: int | None = None
    """Maximum number of rows to read after `skip`, dropped rows included, so that pieces are disjoint. null: all."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be used. error: stop; drop: leave the row out, count it and log the count."""
    skip: int = 0
    """Number of rows to skip at the start."""
    promptsource: str | None = None
    """promptsource templates that turn raw rows into prompts: "file.yaml#template name", or "file.yaml" for all."""
    weight: float | None = None
    """Share or factor of the source in a mixture (docs/mixtures.md). null: a factor of 1; an error in mode weights."""
    templates: int = 1
    """Number of sources that use this data set, each with its own template. A mixture's cap is divided by it (T0)."""
    held_out_tasks: HeldOutTasks | None = None
    """Tasks whose rows must not be read here. A recipe's own `held_out_tasks` applies to all its training sources."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise DataError("path is empty; name a file, a hub data set or python:module:function", field="path")
        check_format_name(self.format)
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit must be at least 1, found {self.limit}; leave it out to read all", field="limit")
        if self.skip < 0:
            raise DataError(f"skip must not be negative, found {self.skip}", field="skip")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise DataError(f"weight must be above 0, found {self.weight}; or remove the source", field="weight")
        if self.templates < 1:
            raise DataError(f"templates must be at least 1, found {self.templates}", field="templates")
        if self.on_bad_row not in ("error", "drop"):
            raise DataError(f"on_bad_row must be error or drop, found '{self.on_bad_row}'", field="on_bad_row")
        if self.promptsource is not None and self.path.startswith("python:"):
            raise DataError(
                "promptsource needs rows, but a Python source yields records; leave it out", field="promptsource"
            )
        if self.promptsource is not None and self.format not in ("auto", "p3"):
            raise DataError(
                f"promptsource produces rows of format p3, not {self.format}; leave format out", field="format"
            )


def load(source: Source, kind: type[R], seed: int = 0) -> Records[R]:
    """The records of a source. `seed` is passed to Python functions; files and hub data sets do not depend on it.

    Raises DataError, naming source, row, field and fix, for the first bad row (unless on_bad_row is "drop") and if no
    row is left."""
    location = locate(source.path, source.split)
    dropped = Drops()
    unread: Counter[str] = Counter()
    mark = fingerprint(source, seed)
    if isinstance(location, FileLocation) and location.left_out:
        names = [f"{path.parent.name}/{path.name}" for path in location.left_out]
        log.info("%s: split %s, left out %s", source.path, source.split, few(names))
    if isinstance(location, PythonLocation):
        form, read = "python", _call(location, source, kind, seed)
    else:
        form, read = _read(location, source, kind, dropped, unread)
    if source.held_out_tasks is not None:
        read = keep_out(read, source.held_out_tasks, source.path, dropped)
    records = Records.of(kind, read, format=form, fingerprint=mark, dropped=dropped, unread=unread)
    told = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
    if not len(records):
        why = (
            f"all were dropped ({told})" if dropped else "there are no rows (after skip)" if source.skip else "no rows"
        )
        if isinstance(location, FileLocation) and not any(path.stat().st_size for path in location.paths):
            why = "no rows, the file is empty (0 bytes)"
        raise DataError(f"{source.path}: no {KIND_NAMES[kind]} left: {why}; check data, format, skip", field="path")
    log.info(
        "%s: format %s, %d %s, dropped %d%s",
        source.path, form, len(records), KIND_NAMES[kind], sum(dropped.values()),
        f" ({dropped.described()})" if dropped else "",
    )  # fmt: skip
    if meaningful := {column: count for column, count in sorted(unread.items()) if meanings(column)}:
        shown = ", ".join(f"{column} ({count} rows)" for column, count in meaningful.items())
        log.warning("%s: columns that may matter, but that format %s does not read: %s", source.path, form, shown)
    return records


def load_all(sources: Sequence[Source], kind: type[R], seed: int = 0) -> Records[R]:
    """The records of several sources, one source after another. Ids are made unique, counts of drops added up."""
    if not sources:
        raise DataError(f"no source for {KIND_NAMES[kind]}; name at least one")
    return concatenate([load(source, kind, seed) for source in sources])


def fingerprint(source: Source, seed: int = 0) -> str:
    """A digest that changes when the source's records may change. Does not parse rows.

    It covers the bytes of files; the source of a Python function's module (and of the modules next to it that it
    imports) and the seed; the name of a hub data set and, if it can be found, its revision."""
    location = locate(source.path, source.split)
    apart = ("path", "promptsource", "weight", "templates")  # without effect on a row's content, or added below
    settings = {key: value for key, value in asdict(source).items() if key not in apart}
    if isinstance(location, PythonLocation):
        settings |= {"function": location.function, "seed": seed}
        contents = [path.read_bytes() for path in python_files(location.module)]
    elif isinstance(location, HubLocation):
        settings |= {"name": location.name, "folder": location.folder, "revision": hub_revision(location.name)}
        contents = []
    else:
        settings["ending"] = file_ending(location.paths[0].name)
        contents = []
        for path in location.paths:
            with open(path, "rb") as stream:
                contents.append(hashlib.file_digest(stream, "sha256").digest())
    if source.promptsource is not None:
        templates, name = find_templates(source.promptsource)
        settings["template"] = name
        contents.append(templates.read_bytes())
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
            raise DataError(f"{source.path}: yielded a {type(record).__name__}; it must yield {KIND_NAMES[kind]}")
        yield record


class Table(NamedTuple):
    """One file, or one data set on the hub."""

    stem: str  # prefix of its records' ids
    place: str  # its name in error messages
    rows: Callable[[], NumberedRows]


def _tables(location: FileLocation | HubLocation, source: Source) -> list[Table]:
    if isinstance(location, HubLocation):
        tables = [Table(location.stem, source.path, partial(hub_rows, location, source.split))]
    else:
        header = FORMATS[source.format].header if source.format in FORMATS else None
        tables = [Table(stem(path), str(path), partial(rows_or_errors, path, header)) for path in location.paths]
    if source.promptsource is None:
        return tables
    return [table._replace(rows=partial(prompted, table.rows, source.promptsource, table.stem)) for table in tables]


def _without_header(location: FileLocation | HubLocation, source: Source) -> Source:
    """The source; if the first line of its .tsv is a row and not a header, with the format recognised from it."""
    if isinstance(location, HubLocation) or source.format != "auto" or source.promptsource is not None:
        return source
    path = location.paths[0]
    form = recognise_cells(first_tsv_cells(path)) if file_ending(path.name) == ".tsv" else None
    return source if form is None else replace(source, format=form)


def _first_rows(rows: NumberedRows) -> tuple[list[Row], NumberedRows]:
    """(the first readable rows, all rows)."""
    start: list[tuple[int, Row | DataError]] = []
    readable: list[Row] = []
    try:
        for number, row in rows:
            start.append((number, row))
            if not isinstance(row, DataError):
                readable.append(row)
            if len(readable) == TOLD_BY:
                break
    except DataError as error:  # raised once reading reaches it
        rows = _raising(error)
    return readable, chain(start, rows)


def _raising(error: DataError) -> NumberedRows:
    raise error
    yield


def _read(
    location: FileLocation | HubLocation, source: Source, kind: type[R], dropped: Drops, unread: Counter[str]
) -> tuple[str, Iterator[R]]:
    """(format, records) of files or a hub data set; `dropped` and `unread` are filled while the records are read."""
    source = _without_header(location, source)
    tables = iter(_tables(location, source))
    opened: list[tuple[Table, NumberedRows]] = []
    first: list[Row] = []
    for table in tables:
        first, rows = _first_rows(unpacked_rows(table.rows()))
        opened.append((table, rows))
        if first:
            break
    name, detected = source.format, source.format == "auto"
    reader: Reader | None = None
    if first:
        try:
            name = recognise_most(first) if detected else name
            reader = reader_for(name, kind)
        except DataError as error:
            raise DataError(f"{source.path}: {error}", field=error.field) from None

    def all_rows() -> Iterator[tuple[Table, int, Row | DataError]]:
        for table, rows in chain(opened, ((table, unpacked_rows(table.rows())) for table in tables)):
            if reader is not None:
                rows = suited_rows(rows, name, kind, detected)
                gather = FORMATS[name].gather
                rows = gather(rows) if gather else rows
            yield from ((table, number, row) for number, row in rows)

    def records() -> Iterator[R]:
        stop = None if source.limit is None else source.skip + source.limit
        for table, number, row in islice(all_rows(), source.skip, stop):
            try:
                if isinstance(row, DataError):
                    raise row
                assert reader is not None
                outcome = reader(row, Origin(f"{table.stem}:{number}", source.path))
                count_unread(row, name, unread)
            except DataError as error:
                if source.on_bad_row == "drop":
                    dropped.add(error.reason, f"{table.place}:{number}")
                    continue
                place = "" if str(error).startswith(f"{table.place}:") else f"{table.place}:{number}: "
                raise DataError(
                    f"{place}{error}; fix or delete the row, or set on_bad_row: drop",
                    field=error.field,
                    reason=error.reason,
                ) from None
            for record in outcome if isinstance(outcome, list) else [outcome]:
                if isinstance(record, Drop):
                    dropped.add(record.reason, f"{table.place}:{number}")
                else:
                    assert isinstance(record, kind)
                    yield record

    return name, records()
