"""What a stage is given to work with, and what it gives back."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from data_schema import Record, Records, prompt_text, split

if TYPE_CHECKING:
    from stages.tracking import Tracker

R = TypeVar("R", bound=Record)
SEEN_PROMPTS = "seen_prompts.txt.gz"


class Job(NamedTuple):
    """One run of one stage."""

    directory: Path  # its run directory: metrics, samples, working state
    parents: Mapping[str, Path]  # role -> verified local directory of a checkpoint
    tracker: Tracker
    seed: int

    @property
    def output(self) -> Path:
        """What the runner publishes when the stage returns."""
        return self.directory / "output"


class StageResult(NamedTuple):
    """A stage's own account of itself; it goes into the manifest."""

    metrics: dict[str, Any]
    data: dict[str, dict[str, Any]]  # role -> what was read and what was dropped, by reason


def data_account(records: Records[Any], **dropped: int) -> dict[str, Any]:
    """How many records of a source are used, and how many were dropped for what."""
    counts = dict(records.dropped)
    for reason, count in dropped.items():
        if count:
            counts[reason.replace("_", " ")] = count
    return {"format": records.format, "records": len(records), "dropped": counts}


def keep_back(records: Records[R], share: float, seed: int) -> tuple[Records[R], Records[R]]:
    """(for training, for measuring): no prompt and no group is in both; a share of 0 keeps nothing back."""
    if share == 0:
        return records, records.select([])
    parts = split(records, {"train": 1 - share, "held_out": share}, seed)
    return parts["train"], parts["held_out"]


def write_seen_prompts(directory: Path, records: Sequence[Record], before: Iterable[str] = ()) -> None:
    """Leave in a checkpoint the hashes of the prompts it was trained on, so that an evaluation can refuse them;
    `before` are hashes that it has already."""
    directory.mkdir(parents=True, exist_ok=True)
    hashes = sorted({prompt_hash(record) for record in records} | set(before))
    with gzip.GzipFile(directory / SEEN_PROMPTS, "wb", mtime=0) as file:
        file.write("\n".join(hashes).encode())


def read_seen_prompts(checkpoints: Iterable[Path]) -> set[str]:
    """The hashes left in these checkpoints; one that is not ours has none."""
    seen: set[str] = set()
    for checkpoint in checkpoints:
        file = checkpoint / SEEN_PROMPTS
        if file.exists():
            seen.update(gzip.decompress(file.read_bytes()).decode().split("\n"))
    return seen


def prompt_hash(record: Record) -> str:
    return hashlib.sha256(prompt_text(record).encode()).hexdigest()[:16]
