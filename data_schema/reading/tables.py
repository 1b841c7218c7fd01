"""Rows of Parquet and Arrow files."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schema.errors import DataError
from data_schema.reading.streams import PACKED, NumberedRows, Row, opened, refuse_bomb, refuse_failed_download

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024  # rows that are Python objects at a time


def read_parquet(path: Path) -> NumberedRows:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    def batches(stream: Any) -> "Iterator[pa.RecordBatch]":
        file = pq.ParquetFile(stream)
        _refuse_twins(file.schema_arrow.names, path)
        yield from file.iter_batches(batch_size=BATCH)

    yield from _read(path, "Parquet", batches)


def read_arrow(path: Path) -> NumberedRows:
    """The rows of an Arrow file in either form: as a stream, which `datasets` writes, or with a table of contents."""
    import pyarrow as pa

    def batches(stream: Any) -> "Iterator[pa.RecordBatch]":
        has_contents = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if has_contents:
            file = pa.ipc.open_file(stream)
            _refuse_twins(file.schema.names, path)
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            reader = pa.ipc.open_stream(stream)
            _refuse_twins(reader.schema.names, path)
            yield from reader

    yield from _read(path, "Arrow", batches)


def _read(path: Path, kind: str, batches: Any) -> NumberedRows:
    import pyarrow as pa

    refuse_failed_download(path)
    with opened(path) as stream:
        source = io.BytesIO(stream.read()) if path.suffix.lower() in PACKED else stream
        try:
            yield from enumerate(_rows(batches(source), path), start=1)
        except DataError:
            raise
        # OSError: a page cannot be decompressed; ValueError, OverflowError: text or a date that Python cannot hold;
        # MemoryError: a damaged size
        except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError, MemoryError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{path}: broken {kind} file ({why}); it may be cut off or damaged: download it, or write it again"
            ) from None


def _rows(batches: "Iterable[pa.RecordBatch]", path: Path) -> Iterator[Row]:
    unpacked = 0
    for batch in batches:
        batch.validate(full=True)  # an offset beyond its buffer would end the process
        unpacked += batch.nbytes
        refuse_bomb(unpacked, path)
        for start in range(0, batch.num_rows, BATCH):
            yield from batch.slice(start, BATCH).to_pylist()


def _refuse_twins(names: list[str], path: Path) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has the column '{twice}' twice; rename one", field=twice)
