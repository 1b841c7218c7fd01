"""Files of the store: the check of what may be published, copying with hashes, and the comparison with a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from checkpoint_store.errors import StoreError
from checkpoint_store.manifest import FileEntry

MANIFEST = "manifest.json"
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
CHUNK = 1 << 22  # bytes: large enough that hashing, not the calls, takes the time


def publishable_files(directory: Path) -> list[str]:
    """Relative paths (forward slashes, sorted) of all files in `directory`.

    Raises StoreError if there are none, or one that no checkpoint may contain: a pickle (loading it can run any code),
    a manifest (the store writes it), or a link to a folder (its files would silently be left out)."""
    refusal = f"cannot publish {directory}:"
    if not directory.is_dir():
        raise StoreError(f"{refusal} it is not a directory; give the folder with the checkpoint's files")
    found = []
    for folder, folders, names in os.walk(directory):
        for linked in (name for name in folders if os.path.islink(os.path.join(folder, name))):
            raise StoreError(f"{refusal} {linked} is a link to a folder; put the files themselves there")
        found += [(Path(folder) / name).relative_to(directory).as_posix() for name in names]
    for path in sorted(found):
        if PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES:
            raise StoreError(f"{refusal} {path} may be a pickle; save tensors as .safetensors, the rest as JSON")
        if path == MANIFEST:
            raise StoreError(f"{refusal} it already contains a {MANIFEST}, which the store writes; remove that file")
    if not found:
        raise StoreError(f"{refusal} it is empty; save the checkpoint's files there first")
    return sorted(found)


def hash_stream(stream: BinaryIO, copy_to: BinaryIO | None = None) -> tuple[int, str]:
    """(size in bytes, sha256) of `stream`, which is also written to `copy_to` if that is given."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return size, digest.hexdigest()


def copy_in(source: Path, fs: AbstractFileSystem, target: str, relative: str) -> FileEntry:
    """Copy one file into the store. The entry describes the bytes written, even if `source` changes meanwhile."""
    fs.makedirs(parent(target), exist_ok=True)
    with open(source, "rb") as stream, fs.open(target, "wb") as out:
        size, sha256 = hash_stream(stream, out)
        if is_local(fs):
            out.flush()
            os.fsync(out.fileno())
    return FileEntry(relative, size, sha256)


def differences(fs: AbstractFileSystem, directory: str, files: tuple[FileEntry, ...]) -> Iterator[str]:
    """One phrase for each difference between the files in `directory` and their entries."""
    for entry in files:
        path = f"{directory}/{entry.path}"
        try:
            info: dict[str, Any] = fs.info(path)
        except FileNotFoundError:
            yield f"{entry.path} is missing"
            continue
        if info["size"] != entry.size:
            yield f"{entry.path} has {info['size']} bytes, not {entry.size}"
            continue
        with fs.open(path, "rb") as stream:
            _, sha256 = hash_stream(stream)
        if sha256 != entry.sha256:
            yield f"{entry.path} was changed (sha256 {sha256[:12]}, not {entry.sha256[:12]})"
    # from_pretrained loads any file it knows (an adapter_config.json, say), so an extra file changes the checkpoint
    known = {entry.path for entry in files} | {MANIFEST}
    for path in sorted(fs.find(directory)):
        relative = path.removeprefix(directory).lstrip("/")
        if relative not in known and not PurePosixPath(relative).name.startswith("."):
            yield f"{relative} is not in the manifest"


def is_local(fs: AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def parent(path: str) -> str:
    return path.rsplit("/", 1)[0]


def sync_folder(path: str | Path) -> None:
    """Make created, renamed and removed entries of a local folder survive a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(fs: AbstractFileSystem, path: str, text: str) -> None:
    """Write a file so that readers see the old one or the new one, never a part. Only local files need a rename."""
    fs.makedirs(parent(path), exist_ok=True)
    if not is_local(fs):
        fs.pipe_file(path, text.encode())
        return
    temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "wb") as out:
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(parent(path))
