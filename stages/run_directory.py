"""Files of a stage's run directory: reads what an interrupted run left, and moves an earlier run's files aside."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checkpoint_store.errors import StoreError

RECORD = "metrics.jsonl"
TABLES = "tables.json"  # lists the tables of the run: [[key, columns], ...]
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no numbers for these


def to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any) -> Any:
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, without an incomplete last line (the process was killed while writing).

    Raises StoreError for a line that is no object with a step."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                row = _parse(line)
                if not isinstance(row, dict) or type(row.get("step")) is not int:
                    raise StoreError(f"{path}:{number} is damaged; delete the file's folder and run the stage again")
                yield row


def read_tables(run_dir: Path) -> dict[str, list[str]]:
    """The tables of a run and their columns. Raises StoreError if the list of them is damaged."""
    path = run_dir / TABLES
    rows = _parse(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else []
    try:
        tables = dict(rows)
    except (TypeError, ValueError):
        tables = {"": []}
    if not all(_is_table(key, columns) for key, columns in tables.items()):
        raise StoreError(f"{path} is damaged; delete {run_dir} and run the stage again")
    return tables


def _is_table(key: Any, columns: Any) -> bool:
    names = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    return names and isinstance(key, str) and key != "" and not key.startswith("/") and ".." not in key


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def move_aside(run_dir: Path, names: Sequence[str]) -> None:
    present = [name for name in names if (run_dir / name).exists()]
    if not present:
        return
    folders = (re.fullmatch(r"before-(\d{1,9})", path.name) for path in run_dir.glob("before-*"))
    number = 1 + max((int(found[1]) for found in folders if found), default=0)
    for name in present:
        target = run_dir / f"before-{number}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(run_dir / name, target)
