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
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from checkpoint_store.errors import StoreError

FORMAT = 1
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
    def from_json(cls, text: str, where: str = "manifest.json") -> Manifest:
        """Parse a manifest. Raises StoreError, naming `where`, for bad JSON, another format, wrong keys or types."""
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise _damaged(where, f"is not valid JSON ({error})") from None
        if not isinstance(values, dict):
            raise _damaged(where, f"is a JSON {type(values).__name__}, not an object")
        if values.get("format") != FORMAT:
            raise StoreError(
                f"{where}: format is {values.get('format')!r}, but this version of triptych reads format {FORMAT}; "
                "use the version that wrote it"
            )
        _check_keys(values, cls, where)
        for name, kind in _FIELD_KINDS.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                found = type(values[name]).__name__
                raise _damaged(where, f"field {name!r} is a {found}, not a {kind.__name__}")
        for name in ("parents", "libraries"):
            if not all(isinstance(value, str) for value in values[name].values()):
                raise _damaged(where, f"field {name!r} must map text to text")
        if values["folder"] and not _is_safe(values["folder"]):
            raise _damaged(where, f"field 'folder' points outside the checkpoint: {values['folder']!r}")
        files = tuple(_file_entry(entry, where) for entry in values["files"])
        return cls(**{**values, "files": files})


_FIELD_KINDS: dict[str, type] = {
    **dict.fromkeys(("stage", "name", "key", "folder", "created"), str),
    **dict.fromkeys(("config", "parents", "data", "code", "metrics", "libraries"), dict),
    "seed": int,
    "files": list,
}


def _damaged(where: str, problem: str) -> StoreError:
    return StoreError(f"{where}: {problem}; restore it from a copy, or delete that checkpoint and run its stage again")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _check_keys(values: Mapping[str, Any], kind: type, where: str) -> None:
    expected = {field.name for field in fields(kind)}
    if missing := sorted(expected - values.keys()):
        raise _damaged(where, f"lacks the field {', '.join(missing)}")
    if unknown := sorted(values.keys() - expected):
        raise _damaged(where, f"has the unknown field {', '.join(unknown)}")


def _is_safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in path


def _file_entry(values: Any, where: str) -> FileEntry:
    if not isinstance(values, dict):
        raise _damaged(where, f"an entry of 'files' is a {type(values).__name__}, not an object")
    _check_keys(values, FileEntry, where)
    entry = FileEntry(**values)
    if not isinstance(entry.path, str) or not _is_safe(entry.path):
        raise _damaged(where, f"a file's path points outside the checkpoint: {entry.path!r}")
    if type(entry.size) is not int or entry.size < 0:
        raise _damaged(where, f"the size of {entry.path} is {entry.size!r}")
    if not isinstance(entry.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise _damaged(where, f"the sha256 of {entry.path} is {entry.sha256!r}")
    return entry


def check_json(value: Any, where: str) -> None:
    """Raise StoreError if `value` would change when written to JSON and read back (tuples may become lists)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise StoreError(f"{where}: the key {key!r} is a {type(key).__name__}; use text")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_json(item, f"{where}[{i}]")
    elif type(value) is float and not math.isfinite(value):
        raise StoreError(f"{where}: {value} cannot be written as JSON; leave it out or write it as text")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise StoreError(f"{where}: {value!r} is a {type(value).__name__}; give plain text, numbers, lists or dicts")


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
