"""Logs the metrics of one stage run to metrics.jsonl and, as a copy, to Weights & Biases (wandb).

Every line of metrics.jsonl is flushed, so it survives a kill. wandb offline writes only whole blocks of 32 KiB, so what
it loses in a crash is sent again from metrics.jsonl. No failure of wandb stops a stage.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from checkpoint_store.errors import StoreError
from stages.run_directory import (
    RECORD,
    TABLES,
    from_json,
    move_aside,
    read_lines,
    read_tables,
    to_json,
    write_atomically,
)

if TYPE_CHECKING:
    import wandb

WandbMode = Literal["auto", "offline", "online", "disabled"]

INIT_SECONDS, FINISH_SECONDS = 30.0, 120.0  # how long a stage waits for an unreachable wandb server

log = logging.getLogger("triptych.tracking")


class Tracker:
    """Writes metrics and tables. Use it as a context manager: an exception closes the wandb run as failed.

    `resume_step` is the last step whose state was saved. Later lines are dropped, since their steps will be repeated,
    and the rest is sent to wandb again. None starts a new run: files of an earlier one in `run_dir` are moved to its
    folder before-1 (2, ...). In a program of several processes only the first makes a Tracker."""

    def __init__(
        self,
        run_dir: Path,
        *,
        project: str,
        group: str,
        job_type: str,
        run_id: str,
        config: dict[str, Any],
        wandb_mode: WandbMode,
        resume_step: int | None = None,
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.warnings: list[str] = []  # what the runner repeats at the end of the run
        self._tables: dict[str, list[str]] = {}
        resumed = resume_step is not None and (run_dir / RECORD).exists()
        if resumed:
            assert resume_step is not None
            self._drop_after(resume_step)
            # the new offline run has everything again; syncing the old one too would mix the two
            move_aside(run_dir, [f"wandb/{path.name}" for path in run_dir.glob("wandb/offline-run-*")])
        else:
            try:
                tables = [f"{key}.jsonl" for key in read_tables(run_dir)]
            except StoreError:  # nothing of it is needed: all files that could be tables are moved
                tables = [path.name for path in run_dir.glob("*.jsonl") if path.name != RECORD]
            move_aside(run_dir, [RECORD, TABLES, "wandb", "rollouts", "snapshots", *tables])
        self._record = (run_dir / RECORD).open("a", encoding="utf-8")
        self._run: wandb.Run | None = None
        self._data_dir_before = os.environ.get("WANDB_DATA_DIR")
        mode = resolve_mode(wandb_mode)
        if mode != "disabled":
            identity = {
                "project": project,
                "group": group,
                "job_type": job_type,
                "id": re.sub(r"[/\\#?%:]", "-", run_id),
            }
            self._start(identity, config, mode, resumed)
        if resumed and self._run is not None:
            self._replay()

    def warn(self, text: str) -> None:
        """Show a warning now. The runner keeps it in the checkpoint's manifest and repeats it at the end of the run."""
        if text not in self.warnings:
            self.warnings.append(text)
            logging.getLogger("triptych").warning("warning: %s", text)

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Log `metrics` at `step`. Several calls may share a step; wandb ignores a step lower than its last one."""
        if clash := {"step", "time"} & metrics.keys():
            raise ValueError(f"a metric cannot be named {clash.pop()!r}: every line of metrics.jsonl has that field")
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        line = {
            "step": step,
            "time": round(time.time(), 3),
            **{name: to_json(value) for name, value in numbers.items()},
        }
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()
        self._forward(numbers, step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Append `rows` to KEY.jsonl (one object per row, with its step) and log them as a table in wandb."""
        if "step" in columns:
            raise ValueError("a column cannot be named 'step': every row has that field")
        path = self.run_dir / f"{key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._tables.get(key) != list(columns):
            self._tables[key] = list(columns)
            write_atomically(self.run_dir / TABLES, json.dumps(list(self._tables.items())))
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                cells = {name: to_json(cell) for name, cell in zip(columns, row, strict=True)}
                file.write(json.dumps({"step": step, **cells}, ensure_ascii=False) + "\n")
        self._forward_table(key, columns, rows, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values in wandb's table of runs. They are also in the checkpoint's manifest."""
        if self._run is not None:
            with _Guard(self, "could not save the summary"):
                self._run.summary.update(dict(values))

    def close(self, exit_code: int = 0) -> None:
        """End the run. Further calls have no effect."""
        if self._record.closed:
            return
        self._record.close()
        if self._run is not None:
            run, self._run = self._run, None
            with _Guard(self, f"did not finish; run `wandb sync` on {self.run_dir / 'wandb'} to send the rest"):
                run.finish(exit_code=exit_code)
        if self._data_dir_before is None:
            os.environ.pop("WANDB_DATA_DIR", None)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            self.close(error.code)
        else:
            self.close(0 if error is None else 1)

    def _start(self, identity: dict[str, str], config: dict[str, Any], mode: str, resumed: bool) -> None:
        # tables for `wandb sync` are stored here, not in the user's home as by default
        os.environ.setdefault("WANDB_DATA_DIR", str(self.run_dir.absolute() / "wandb"))
        with _Guard(self, "cannot start; metrics go only to metrics.jsonl"):
            import wandb

            settings = wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            )
            wandb.setup(settings)
            # without `resume` a run of the same id on the server is overwritten, as a new run should
            options: dict[str, Any] = {
                **identity,
                "dir": str(self.run_dir),
                "config": config,
                "settings": settings,
                "resume": "allow" if resumed else None,
                "reinit": "create_new",
                "mode": mode,
            }
            try:
                self._run = wandb.init(**options)
            except Exception as error:
                if mode == "online":
                    log.warning("wandb: cannot go online (%s); staying offline, upload with `wandb sync`", _line(error))
                wandb.teardown()  # a failed start, or a run not finished in this process, would keep the run's id
                self._run = wandb.init(**{**options, "mode": "offline"})

    def _replay(self) -> None:
        """Send all logged metrics and tables again, in order of steps. A server ignores steps that it already has."""
        tables: dict[int, list[tuple[str, list[list[Any]]]]] = {}
        for key, columns in self._tables.items():
            by_step: dict[int, list[list[Any]]] = {}
            for row in read_lines(self.run_dir / f"{key}.jsonl"):
                by_step.setdefault(row["step"], []).append([from_json(row.get(name)) for name in columns])
            for step, rows in by_step.items():
                tables.setdefault(step, []).append((key, rows))
        metrics: dict[int, dict[str, Any]] = {}
        for record in read_lines(self.run_dir / RECORD):
            values = {name: from_json(value) for name, value in record.items() if name not in ("step", "time")}
            metrics.setdefault(record["step"], {}).update(values)
        for step in sorted(metrics.keys() | tables.keys()):
            self._forward(metrics.get(step, {}), step)
            for key, rows in tables.get(step, []):
                self._forward_table(key, self._tables[key], rows, step)

    def _forward(self, numbers: Mapping[str, float | int], step: int) -> None:
        if self._run is not None:
            with _Guard(self, "failed; metrics go only to metrics.jsonl"):
                self._run.log(dict(numbers), step=step)

    def _forward_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        if self._run is not None:
            with _Guard(self, "failed; metrics go only to metrics.jsonl"):
                import wandb

                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
                self._run.log({key: table}, step=step)

    def _drop_after(self, step: int) -> None:
        self._tables = read_tables(self.run_dir)
        for path in (self.run_dir / RECORD, *(self.run_dir / f"{key}.jsonl" for key in self._tables)):
            kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in read_lines(path) if row["step"] <= step]
            write_atomically(path, "".join(kept))


class _Guard:
    """Turns any failure of wandb into one warning; the tracker then continues without wandb."""

    def __init__(self, tracker: Tracker, problem: str):
        self.tracker, self.problem = tracker, problem

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        log.warning("wandb: %s (%s)", self.problem, _line(error))
        self.tracker._run = None
        return True


def resolve_mode(wandb_mode: WandbMode) -> str:
    """-> online, offline or disabled. WANDB_MODE takes precedence; "auto" is online only if a login is found."""
    mode = os.environ.get("WANDB_MODE") or wandb_mode
    if mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") or _netrc_login() else "offline"
    return mode


def _netrc_login() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
