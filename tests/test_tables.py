"""Parquet and Arrow files give their rows; damaged ones are an error in one line and never end the process."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_schema import DataError, read_rows

ROWS = [{"a": f"one {i}", "b": [{"role": "user", "content": "é" * i}], "n": i / 2} for i in range(50)]
TABLE = pa.Table.from_pylist(ROWS)


def written(kind: str, table: pa.Table = TABLE) -> bytes:
    stream = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, stream)
    else:
        make: Callable[..., pa.RecordBatchFileWriter] = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with make(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return stream.getvalue()


KINDS = {"stream": "rows.arrow", "file": "rows.arrow", "parquet": "rows.parquet"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / KINDS[kind]
    path.write_bytes(written(kind))
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_given_twice_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / KINDS[kind]
    path.write_bytes(written(kind, pa.table([pa.array(["x"])] * 3, names=["prompt", "completion", "prompt"])))
    with pytest.raises(DataError, match=rf"{path.name}: has the column 'prompt' twice"):
        list(read_rows(path))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    """An offset beyond its buffer would otherwise be a segmentation fault."""
    rng = random.Random(kind)
    path = tmp_path / KINDS[kind]
    whole = written(kind)
    refused = 0
    for turn in range(150):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if turn % 3 == 0 else whole)
        for _ in range(rng.randrange(1, 4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            list(read_rows(path))
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and "broken" in str(error) and "download it, or write it again" in str(error)
    assert refused > 50
