"""A stage's input and result, and functions to count and split its data and to remember its prompts."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from data_schema import DataError, Record, Records, prompt_text, split

if TYPE_CHECKING:
    from stages.tracking import Tracker

R = TypeVar("R", bound=Record)
SEEN_PROMPTS = "seen_prompts.txt.gz"


class Job(NamedTuple):
    """One run of one stage."""

    directory: Path  # run directory: metrics, samples, working state
    parents: Mapping[str, Path]  # role -> verified local directory of a checkpoint
    tracker: Tracker
    seed: int

    @property
    def output(self) -> Path:
        """Directory that the runner publishes when the stage returns."""
        return self.directory / "output"


class StageResult(NamedTuple):
    """A stage's results, for the manifest."""

    metrics: dict[str, Any]
    data: dict[str, dict[str, Any]]  # role -> records read, and records dropped by reason


def data_account(records: Records[Any], **dropped: int) -> dict[str, Any]:
    """Numbers of records used, and of records dropped by reason, for the manifest."""
    counts = dict(records.dropped)
    for reason, count in dropped.items():
        if count:
            counts[reason.replace("_", " ")] = count
    return {"format": records.format, "records": len(records), "dropped": counts}


def keep_back(records: Records[R], share: float, seed: int, setting: str = "held_out") -> tuple[Records[R], Records[R]]:
    """-> (training records, held-out records); no prompt or group is in both. A share of 0 holds nothing out.

    Raises DataError, which names `setting`, if one of them would be empty."""
    if share == 0:
        return records, records.select([])
    try:
        parts = split(records, {"train": 1 - share, "held_out": share}, seed)
    except DataError as error:
        raise DataError(
            f"{setting} is {share:g}, but {error}; or set {setting} to 0 to hold nothing out", field=setting
        ) from None
    return parts["train"], parts["held_out"]


def halves(records: Records[R], seed: int, setting: str) -> tuple[Records[R], Records[R]]:
    """-> two parts of about half of the records each; no prompt or group is in both.

    Raises DataError, which names `setting`, if one of them would be empty."""
    try:
        # Not the seed itself: `keep_back` has drawn with it, and what it left is not spread evenly over its draws.
        parts = split(records, {"first half": 0.5, "second half": 0.5}, seed + 1)
    except DataError as error:
        raise DataError(f"{setting} is true, but {error}; or set {setting} to false", field=setting) from None
    return parts["first half"], parts["second half"]


def write_seen_prompts(directory: Path, records: Sequence[Record], before: Iterable[str] = ()) -> None:
    """Write into a checkpoint the hashes of the prompts it was trained on, so that an evaluation can leave them out;
    `before` are further hashes to include."""
    directory.mkdir(parents=True, exist_ok=True)
    hashes = sorted({prompt_hash(record) for record in records} | set(before))
    with gzip.GzipFile(directory / SEEN_PROMPTS, "wb", mtime=0) as file:
        file.write("\n".join(hashes).encode())


def read_seen_prompts(checkpoints: Iterable[Path]) -> set[str]:
    """The hashes written into these checkpoints; a checkpoint from elsewhere has none."""
    seen: set[str] = set()
    for checkpoint in checkpoints:
        file = checkpoint / SEEN_PROMPTS
        if file.exists():
            seen.update(gzip.decompress(file.read_bytes()).decode().split("\n"))
    return seen


def prompt_hash(record: Record) -> str:
    return hashlib.sha256(prompt_text(record).encode()).hexdigest()[:16]
