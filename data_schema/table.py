"""Large sets of records: an Arrow table on disk, memory-mapped, so that a million rows need no Python lists."""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, overload

from data_schema.errors import DataError
from data_schema.records import KIND_NAMES, Comparison, Demonstration, Document, Prompt, R, Record, from_dict, to_dict

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BATCH = 1024  # rows that are in memory as Python objects at a time


def arrow_schema(kind: type[R]) -> "pa.Schema":
    """The columns of a kind of record: its fields, with `meta` as JSON text."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("learned", pa.bool_())]))
    types: dict[type, dict[str, pa.DataType]] = {
        Demonstration: {"messages": messages},
        Comparison: {
            "prompt": messages,
            "responses": pa.list_(pa.string()),
            "ranks": pa.list_(pa.int64()),
            "margin": pa.float64(),
        },
        Prompt: {"prompt": messages},
        Document: {},
    }
    return pa.schema([(f.name, types[kind].get(f.name, pa.string())) for f in fields(kind)])


def to_row(record: Record) -> dict[str, Any]:
    """The record as one row of its Arrow table."""
    row = to_dict(record)
    if "meta" in row:
        row["meta"] = json.dumps(row["meta"], default=str)  # ASCII, so that no unusual character can fail
    return row


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record of one row of an Arrow table or Parquet file. Raises DataError as `from_dict` does."""
    meta = row.get("meta")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except json.JSONDecodeError:
            raise DataError("'meta' is not JSON", field="meta") from None
    return from_dict(kind, {**row, "meta": meta})


def rows_to_table(kind: type[R], records: Iterable[Record]) -> "pa.Table":
    """The records in a memory-mapped Arrow table. Its file is already deleted, so a killed process leaves nothing."""
    import tempfile

    import pyarrow as pa

    schema = arrow_schema(kind)
    remaining = iter(records)
    # Some systems cannot delete a mapped file; there it stays until the folder for temporary files is emptied.
    with tempfile.TemporaryDirectory(prefix="triptych-records-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "records.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            while batch := [to_row(record) for record in islice(remaining, BATCH)]:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class Records(Sequence[R], Generic[R]):
    """Records of one kind, read from disk one at a time."""

    def __init__(
        self,
        kind: type[R],
        table: "pa.Table",
        *,
        format: str,
        fingerprint: str,
        dropped: Mapping[str, int] | None = None,
        unread: Mapping[str, int] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.kind = kind
        self.format = format
        self.fingerprint = fingerprint  # changes with the data and the choice of rows
        self.dropped = dict(dropped or {})  # reason -> number of rows that were dropped
        self.unread = dict(unread or {})  # column that the format does not read -> number of rows with content in it
        self._table = table
        # Rows are found in their batch by bisection: Arrow's own take may copy a whole column of text.
        self._batches = table.to_batches()
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self._indices = None if indices is None else array("q", indices)

    @classmethod
    def of(
        cls,
        kind: type[R],
        records: Iterable[R],
        *,
        format: str = "records",
        fingerprint: str | None = None,
        dropped: Mapping[str, int] | None = None,
        unread: Mapping[str, int] | None = None,
    ) -> "Records[R]":
        """Records from any iterable, never all in memory. By default the fingerprint is computed from their rows.
        `dropped` and `unread` are read after the last record, so the iterable may fill them."""
        digest = hashlib.sha256()

        def checked() -> Iterator[R]:
            for record in records:
                if not isinstance(record, kind):
                    raise DataError(f"expected {KIND_NAMES[kind]}, found {type(record).__name__}")
                if fingerprint is None:
                    digest.update(json.dumps(to_row(record)).encode())
                yield record

        table = with_unique_ids(rows_to_table(kind, checked()))
        mark = fingerprint or digest.hexdigest()
        return cls(kind, table, format=format, fingerprint=mark, dropped=dropped, unread=unread)

    def __len__(self) -> int:
        return self._table.num_rows if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, at: int) -> R: ...
    @overload
    def __getitem__(self, at: slice) -> "Records[R]": ...
    def __getitem__(self, at: int | slice) -> "R | Records[R]":
        if isinstance(at, slice):
            return self.select(range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(f"record {at} of {len(self)}")
        at = at % len(self)
        row = at if self._indices is None else self._indices[at]
        batch = bisect_right(self._ends, row)
        start = self._ends[batch] - self._batches[batch].num_rows
        return from_row(self.kind, self._batches[batch].slice(row - start, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[R]:
        if self._indices is not None:
            yield from (self[i] for i in range(len(self)))
            return
        for batch in self._batches:
            yield from (from_row(self.kind, row) for row in batch.to_pylist())

    def __repr__(self) -> str:
        return f"Records({len(self)} {KIND_NAMES[self.kind]}, format {self.format})"

    def select(self, indices: Iterable[int]) -> "Records[R]":
        """The records at these indices, in this order, backed by the same file."""
        chosen = array("q", indices)
        if any(not 0 <= i < len(self) for i in chosen):
            raise IndexError(f"indices must be in 0..{len(self) - 1}")
        rows = chosen if self._indices is None else array("q", (self._indices[i] for i in chosen))
        fingerprint = hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest()
        return self._with(fingerprint=fingerprint, dropped=self.dropped, indices=rows)

    def with_dropped(self, dropped: Mapping[str, int]) -> "Records[R]":
        """The same records with other counts of dropped rows."""
        return self._with(fingerprint=self.fingerprint, dropped=dropped, indices=self._indices)

    def _with(self, *, fingerprint: str, dropped: Mapping[str, int], indices: Sequence[int] | None) -> "Records[R]":
        return Records(
            self.kind,
            self._table,
            format=self.format,
            fingerprint=fingerprint,
            dropped=dropped,
            unread=self.unread,
            indices=indices,
        )

    def to_dataset(self) -> "datasets.Dataset":
        """The records as a `datasets.Dataset` backed by the same memory-mapped file."""
        import datasets
        from datasets.table import InMemoryTable

        dataset = datasets.Dataset(InMemoryTable(self._table), fingerprint=self.fingerprint[:16])
        return dataset if self._indices is None else dataset.select(self._indices)


def concatenate(parts: Sequence[Records[R]]) -> Records[R]:
    """Records of one kind, one part after another. Ids are made unique, counts of drops added up."""
    import pyarrow as pa

    starts = [0, *accumulate(part._table.num_rows for part in parts)]
    indices: array[int] | None = None
    if any(part._indices is not None for part in parts):
        indices = array("q")
        for part, start in zip(parts, starts, strict=False):
            rows = range(len(part)) if part._indices is None else part._indices
            indices.extend(start + row for row in rows)
    return Records(
        parts[0].kind,
        with_unique_ids(pa.concat_tables([part._table for part in parts])),
        format=" + ".join(dict.fromkeys(part.format for part in parts)),
        fingerprint=hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest(),
        dropped=sum((Counter(part.dropped) for part in parts), Counter[str]()),
        unread=sum((Counter(part.unread) for part in parts), Counter[str]()),
        indices=indices,
    )


def with_unique_ids(table: "pa.Table") -> "pa.Table":
    """The table with '~2', '~3', .. appended to repeated ids; the order of rows does not change."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.count_distinct(table.column("id")).as_py() == table.num_rows:
        return table
    ids = table.column("id").to_pylist()
    taken = set(ids)
    seen: set[str] = set()
    for i, name in enumerate(ids):
        number = 2
        while ids[i] in seen or (ids[i] != name and ids[i] in taken):
            ids[i], number = f"{name}~{number}", number + 1
        seen.add(ids[i])
    return table.set_column(table.schema.get_field_index("id"), table.schema.field("id"), pa.array(ids, pa.string()))
