"""The manifest of a checkpoint, the key it is found by, and the state of the code that made it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from checkpoint_store.errors import StoreError

FORMAT = 1
DEEPEST = 32  # levels of nesting in a manifest; ours have 6
LONGEST_INTEGER = 300  # digits: more do not fit a float
LONGEST_SHOWN = 60  # characters of a wrong value in a message
KEY_PATTERN = re.compile(r"[0-9a-f]{20}")
LIBRARIES = (
    *("triptych", "torch", "transformers", "tokenizers", "safetensors"),
    *("datasets", "accelerate", "peft", "numpy"),
)


@dataclass(frozen=True)
class FileEntry:
    path: str  # relative to the checkpoint's directory, with forward slashes
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything needed to trace where a checkpoint came from and to check that it is intact."""

    stage: str
    name: str
    key: str
    config: dict[str, Any]  # resolved: with every default filled in
    parents: dict[str, str]  # role ("policy", "reward_model", ...) -> key
    data: dict[str, Any]  # role -> fingerprint, source, records, dropped
    code: dict[str, Any]
    seed: int
    metrics: dict[str, Any]
    libraries: dict[str, str]
    files: tuple[FileEntry, ...]
    folder: str  # where the files are, relative to the manifest: "" or a sub-folder
    created: str  # UTC, ISO 8601
    format: int = FORMAT

    def to_json(self) -> str:
        check_json(asdict(self), "manifest")
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Parse a manifest. Raises StoreError, naming `where`, for bad JSON, another format, wrong fields or values."""
        values = _parse(text, where)
        if not isinstance(values, dict):
            raise _damaged(where, f"is {_kind_of(values)}, not an object")
        if values.get("format") != FORMAT:
            raise StoreError(
                f"{where}: its format is {_shown(values.get('format'))}, but this version of triptych reads format "
                f"{FORMAT}; use the version that wrote it"
            )
        _check_fields(values, cls, where)
        for name, kind in _FIELD_KINDS.items():
            _check_kind(values[name], kind, f"field '{name}'", where)
        for name in ("parents", "libraries"):
            if not all(isinstance(value, str) for value in values[name].values()):
                raise _damaged(where, f"field '{name}' must map text to text")
        for role, account in values["data"].items():
            _check_kind(account, dict, f"'{role}' in the field 'data'", where)
            dropped = account.get("dropped", {})
            _check_kind(dropped, dict, f"'dropped' of '{role}' in the field 'data'", where)
            if not all(type(count) is int for count in dropped.values()):
                raise _damaged(where, f"'dropped' of '{role}' in the field 'data' must map reasons to numbers of rows")
        if not KEY_PATTERN.fullmatch(values["key"]):
            raise _damaged(where, f"field 'key' is {_shown(values['key'])}, not 20 hex digits")
        try:
            datetime.fromisoformat(values["created"])
        except ValueError:
            raise _damaged(where, f"field 'created' is {_shown(values['created'])}, not a date and time") from None
        if values["folder"] and not _is_safe(values["folder"]):
            raise _damaged(where, f"field 'folder' points outside the checkpoint: {_shown(values['folder'])}")
        files = tuple(_file_entry(entry, where) for entry in values["files"])
        return cls(**{**values, "files": files})


_FIELD_KINDS: dict[str, type] = {
    **dict.fromkeys(("stage", "name", "key", "folder", "created"), str),
    **dict.fromkeys(("config", "parents", "data", "code", "metrics", "libraries"), dict),
    "seed": int,
    "files": list,
}
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number with a fraction"),
    (str, "text"),
    (list, "a list"),
    (dict, "an object"),
    (type(None), "null"),
)


def _damaged(where: str, problem: str) -> StoreError:
    return StoreError(
        f"{where}: {problem}; restore it from a copy, or delete that checkpoint (`triptych rm`) and run its stage again"
    )


def _parse(text: str | bytes, where: str) -> Any:
    try:
        decoded = text if isinstance(text, str) else text.decode()
        values = json.loads(decoded, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _damaged(where, "is not text in UTF-8") from None
    except UnicodeEncodeError:
        raise _damaged(where, "has half a surrogate pair in a text, which is not a character") from None
    except RecursionError:
        raise _damaged(where, f"is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise _damaged(where, f"is not valid JSON ({error})") from None
    if _is_deep(values):
        raise _damaged(where, f"is nested more than {DEEPEST} deep")
    return values


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(DEEPEST):
        lists = (list(value.values()) if isinstance(value, dict) else value for value in level)
        level = [item for each in lists if isinstance(each, list) for item in each]
    return bool(level)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _int(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _kind_of(value: Any) -> str:
    return next(words for kind, words in _KINDS if isinstance(value, kind))


def _shown(value: Any) -> str:
    """A value in a message: JSON, cut to a sensible length."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _check_kind(value: Any, kind: type, what: str, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = next(words for each, words in _KINDS if each is kind)
        raise _damaged(where, f"{what} is {_kind_of(value)}, not {wanted}")


def _check_fields(values: Mapping[str, Any], kind: type, where: str) -> None:
    expected = {field.name for field in fields(kind)}
    if missing := sorted(expected - values.keys()):
        raise _damaged(where, f"lacks the field {', '.join(missing)}")
    if unknown := sorted(values.keys() - expected):
        raise _damaged(where, f"has the unknown field {', '.join(unknown)}")


def _is_safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in path


def _file_entry(values: Any, where: str) -> FileEntry:
    _check_kind(values, dict, "an entry of 'files'", where)
    _check_fields(values, FileEntry, where)
    entry = FileEntry(**values)
    if not isinstance(entry.path, str) or not _is_safe(entry.path):
        raise _damaged(where, f"a file's path points outside the checkpoint: {_shown(entry.path)}")
    if type(entry.size) is not int or entry.size < 0:
        raise _damaged(where, f"the size of {entry.path} is {_shown(entry.size)}")
    if not isinstance(entry.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise _damaged(where, f"the sha256 of {entry.path} is {_shown(entry.sha256)}")
    return entry


def check_json(value: Any, where: str) -> None:
    """Raise StoreError if `value` would change when written to JSON and read back (tuples may become lists)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise StoreError(f"{where}: the key {key} is not text; use text")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_json(item, f"{where}[{i}]")
    elif type(value) is float and not math.isfinite(value):
        raise StoreError(f"{where}: {value} cannot be written as JSON; leave it out or write it as text")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise StoreError(f"{where}: {value} has no form in JSON; give text, numbers, lists or mappings")


def stage_key(
    stage: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    data: Mapping[str, Any],
    code_version: str | Mapping[str, Any],
) -> str:
    """The key of a stage's result: 20 hex digits of the sha256 over everything that determines the result.

    `config` contains only settings that affect it (not, say, how often to log). Raises StoreError if a value has no
    exact form in JSON. The order of dict keys does not matter; 1 and 1.0 are different values."""
    inputs = {
        "stage": stage,
        "config": dict(config),
        "parents": dict(parents),
        "data": dict(data),
        "code": code_version if isinstance(code_version, str) else dict(code_version),
    }
    check_json(inputs, "key")
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that affect a result, found without importing them."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def code_state(path: str | Path) -> dict[str, str | None]:
    """{"commit": ..., "dirty": digest | None} of the Python files under `path`, from git.

    `dirty` is a digest of changes to tracked files and of untracked files, so that two uncommitted states differ.
    Without git (no program, no repository, or `path` is not part of it, as in site-packages) the commit is replaced by
    the package's version."""
    directory = Path(path)
    try:
        tracked = _git(directory, "ls-files", "-z", "--", "*.py")
        untracked = _git(directory, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
        if not tracked and not untracked:
            raise FileNotFoundError(directory)
        commit = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD", allowed=(0, 1)).decode().strip()
        # independent of the user's own settings for diff
        diff = ("diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", "--", "*.py")
        changed = _git(directory, *diff) if commit else b""
    except (OSError, subprocess.CalledProcessError):
        return {"commit": f"triptych {library_versions().get('triptych', 'unknown')}", "dirty": None}
    digest = hashlib.sha256(changed)
    loose = untracked if commit else tracked + untracked  # before the first commit no file is committed
    for name in sorted(filter(None, loose.decode(errors="surrogateescape").split("\0"))):
        content = (directory / name).read_bytes() if (directory / name).is_file() else b"deleted"
        digest.update(f"\0{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    return {"commit": commit or None, "dirty": digest.hexdigest()[:20] if changed or loose else None}


def _git(directory: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> bytes:
    # inside a git hook, GIT_DIR and similar variables point to another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(directory), *arguments]
    result = subprocess.run(command, capture_output=True, env=environment)
    if result.returncode not in allowed:
        raise subprocess.CalledProcessError(result.returncode, command)
    return result.stdout
