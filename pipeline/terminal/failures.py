"""What a command says when it fails: one line for what the user can fix, and one before the traceback of a bug."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator

from pipeline.terminal.console import one_line

KEPT = "finished stages are kept, and the same command continues after them"
FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "has no room left for you (quota)", errno.EFBIG: "allows no larger file"}
# What libraries written in C and Rust say in place of an error number.
FULL_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "os error 122": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "os error 27": errno.EFBIG,
}
MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "annot allocate memory",
    "std::bad_alloc",
)


def guarded(action: Callable[[], None]) -> int:
    """Run `action` and return the exit code. Errors that the user can fix become one line on stderr and the code 2; any
    other error is raised again after a line that says what to do."""
    try:
        return finished(action)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        drop_output()
        return 141
    except KeyboardInterrupt:
        say("interrupted; finished stages are kept, and the next run continues after them")
        return 130
    except Exception as error:
        if isinstance(error, mistakes()):
            say(str(error))
            return 2
        if (line := known_failure(error)) is not None:
            say(line)
            drop_output()
            return 2
        where = "".join(f" {note}." for note in notes(error))
        say(
            f"this is a bug in triptych, not a mistake of yours.{where} To go on: {KEPT}. "
            "Please report the traceback below with the output of `triptych --version`:"
        )
        raise


def mistakes() -> tuple[type[Exception], ...]:
    """The errors that the user can fix. Imported only once there is an error, so that help appears at once."""
    from checkpoint_store import StoreError
    from data_schema import DataError
    from policy.errors import ModelError
    from stages.errors import ConfigError

    return ConfigError, DataError, ModelError, StoreError


def finished(action: Callable[[], None]) -> int:
    """Run `action` and send what it has printed. Returns its exit code."""
    code = 0
    try:
        action()
    except SystemExit as end:  # --help, SIGTERM, or a command with an exit code of its own
        if end.code is not None and not isinstance(end.code, int):
            raise
        code = end.code or 0
    sys.stdout.flush()
    return code


def say(text: str) -> None:
    print(f"triptych: {one_line(text)}", file=sys.stderr)


def drop_output() -> None:
    """Let Python's own flush of stdout at exit go nowhere; the first one has failed already."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def known_failure(error: BaseException) -> str | None:
    """The line for an error that the computer, not triptych, is the reason for; None for any other."""
    where = "".join(f"; {note}" for note in notes(error))
    for cause in chain(error):
        text = one_line(str(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in FULL and not isinstance(cause, UnicodeError):
            number = next((number for words, number in FULL_TEXTS.items() if words in text), number)
        if number in FULL:
            what = f"the disk {FULL[number]} ({path_of(cause) or text}){where}"
            return f"{what}; make room, or choose another disk with --root; {KEPT}"
        if isinstance(cause, MemoryError) or any(words in text for words in MEMORY_TEXTS):
            return (
                f"not enough memory ({text or 'Python could not get more'}){where}; use a smaller model, batch or "
                f"length ('triptych plan RECIPE' predicts PPO's), or close other programs; {KEPT}"
            )
    if isinstance(error, OSError) and error.errno is not None:
        place = path_of(error)
        return f"{f'{place}: ' if place else ''}{error.strerror}{where}; check the path, its permissions and the disk"
    return None


def path_of(error: BaseException) -> str:
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    shown = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names if name]
    return " -> ".join(f"'{name}'" for name in shown)


def notes(error: BaseException) -> list[str]:
    """What the runner has noted on an error: the stage and its run directory."""
    return [note for cause in chain(error) for note in getattr(cause, "__notes__", []) if note.startswith("stage ")]


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, without going round in circles."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is other for other in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
