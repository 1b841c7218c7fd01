"""The checkpoint store: one directory, local or in a bucket, that all stages share.

    ROOT/checkpoints/KEY/manifest.json + files    a checkpoint: it exists if and only if its manifest does
    ROOT/refs/NAME.ref                            a name: one line, the key it points to

Every publisher works in its own folder and its last step is atomic, so no lock is needed and a killed publisher leaves
nothing visible. On a local disk that step is the rename of the finished folder (fsspec's create-if-absent is a check
followed by a write there, which is not atomic). A bucket has no rename: there the files go into a sub-folder, and the
manifest, which names the sub-folder, is created last by create-if-absent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from checkpoint_store.errors import StoreError
from checkpoint_store.files import (
    MANIFEST,
    copy_in,
    differences,
    is_local,
    publishable_files,
    sync_folder,
    write_atomically,
)
from checkpoint_store.manifest import KEY_PATTERN, Manifest, library_versions

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
REF_SUFFIX = ".ref"
SHORTEST_PREFIX = 4  # fewest digits of a key that may stand for it

# Directories found intact: checkpoints never change, so a process hashes each only once.
_verified: set[str] = set()


class CheckpointStore:
    """`root` is a local path or any fsspec address (memory://, s3://bucket/folder with s3fs installed)."""

    def __init__(self, root: str | Path):
        self.root = str(root)
        try:
            # listings are cached by default for buckets; another process may have published since
            self._fs, base = url_to_fs(os.path.expanduser(self.root), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(f"cannot open the store {self.root}: {error}") from None
        self._base = base.rstrip("/")
        self._local = is_local(self._fs)

    def exists(self, key: str) -> bool:
        return KEY_PATTERN.fullmatch(key) is not None and self._fs.isfile(f"{self._home(key)}/{MANIFEST}")

    def keys(self) -> tuple[str, ...]:
        """Keys of all checkpoints, sorted, without the remains of killed publishers."""
        return tuple(key for key in sorted(self._children(f"{self._base}/checkpoints")) if self.exists(key))

    def manifest(self, key: str) -> Manifest:
        path = f"{self._home(key)}/{MANIFEST}"
        if not self.exists(key):
            raise StoreError(f"no checkpoint has the key {key!r} in {self.root}; {self._what_is_there()}")
        return Manifest.from_json(self._fs.cat_file(path).decode(), where=path)

    def publish(
        self,
        directory: str | Path,
        *,
        stage: str,
        name: str,
        key: str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        data: Mapping[str, Any],
        code_version: str | Mapping[str, Any],
        seed: int,
        metrics: Mapping[str, Any],
    ) -> Manifest:
        """Copy all files of `directory` into the store as the checkpoint `key`, and point `name` to it.

        If the key exists already, or appears meanwhile, that checkpoint is kept and its manifest is returned.
        Raises StoreError for a pickle among the files, a malformed key or name, or values that JSON cannot represent.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise StoreError(f"cannot publish under the key {key!r}: a key is 20 hex digits, as stage_key() makes them")
        _check_name(name)
        if not self.exists(key):
            attempt = f"{key}.attempt-{os.getpid()}-{os.urandom(4).hex()}"
            folder = "" if self._local else attempt
            attempt_home = f"{self._base}/checkpoints/{attempt}" if self._local else f"{self._home(key)}/{attempt}"
            try:
                manifest = Manifest(
                    stage=stage,
                    name=name,
                    key=key,
                    config=dict(config),
                    parents=dict(parents),
                    data=dict(data),
                    code={"version": code_version} if isinstance(code_version, str) else dict(code_version),
                    seed=seed,
                    metrics=dict(metrics),
                    libraries=library_versions(),
                    files=(),
                    folder=folder,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                )
                manifest.to_json()  # find values that JSON cannot represent before gigabytes are copied
                source = Path(directory)
                paths = publishable_files(source)
                files = tuple(copy_in(source / path, self._fs, f"{attempt_home}/{path}", path) for path in paths)
                self._commit(key, attempt_home, replace(manifest, files=files).to_json())
            except BaseException as error:
                # A rival that finishes first deletes our unfinished files, so a failure after that is not an error.
                # A bucket may report that an upload failed although it succeeded: then our files are the checkpoint.
                exists = self.exists(key)
                if not (exists and folder and self.manifest(key).folder == folder):
                    self._remove(attempt_home)
                if not exists or not isinstance(error, Exception):
                    raise
            else:
                self._sweep(key, attempt_home)
        self.name(name, key)
        return self.manifest(key)

    def path(self, key: str) -> Path:
        """Local directory of the checkpoint, its hashes verified; from a bucket it is downloaded once per machine."""
        manifest = self.manifest(key)
        if self._local:
            directory = self._files_home(manifest)
            if directory not in _verified:
                self.verify(key)
            return Path(directory)
        # two stores may have different checkpoints under one key, so a digest of the manifest is part of the path
        digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:12]
        cached = _cache_folder() / f"{key}-{digest}"
        local_fs, _ = url_to_fs(str(cached))
        if str(cached) in _verified:
            return cached
        if cached.exists() and list(differences(local_fs, str(cached), manifest.files)):
            shutil.rmtree(cached)
        if not cached.exists():
            self._download(manifest, cached)
        _verified.add(str(cached))
        return cached

    def verify(self, key: str) -> None:
        """Hash every file in place. Raises StoreError, naming all differences from the manifest."""
        manifest = self.manifest(key)
        directory = self._files_home(manifest)
        _verified.discard(directory)
        if found := list(differences(self._fs, directory, manifest.files)):
            raise StoreError(
                f"checkpoint {manifest.name} ({key}) in {self.root} is damaged: {'; '.join(found)}. "
                f"Restore it from a copy, or delete {self._home(key)} and run {manifest.stage} again"
            )
        if self._local:
            _verified.add(directory)

    def remove(self, key: str) -> None:
        """Delete a checkpoint: first its manifest, so that it no longer exists, then its files. Names that point to
        it dangle."""
        if self.exists(key):
            self._fs.rm_file(f"{self._home(key)}/{MANIFEST}")
            _verified.discard(self._home(key))
            self._remove(self._home(key))

    def name(self, name: str, key: str) -> None:
        """Make `name` ("sft", "quickstart/sft") point to `key` instead of to its previous key."""
        _check_name(name)
        if not self.exists(key):
            raise StoreError(f"cannot name {key!r} {name!r}: no such key in {self.root}; {self._what_is_there()}")
        write_atomically(self._fs, f"{self._base}/refs/{name}{REF_SUFFIX}", key + "\n")

    def names(self) -> dict[str, str]:
        """All names, sorted, and the keys they point to."""
        refs = f"{self._base}/refs"
        paths = [path for path in self._fs.find(refs) if path.endswith(REF_SUFFIX)] if self._fs.isdir(refs) else []
        found = {path.removeprefix(refs).strip("/").removesuffix(REF_SUFFIX): path for path in paths}
        return {name: self._fs.cat_file(found[name]).decode().strip() for name in sorted(found)}

    def resolve(self, name_or_key: str) -> str:
        """The key for a name, a key, or a key's first digits (at least 4). Raises StoreError for none or several."""
        ref = f"{self._base}/refs/{name_or_key}{REF_SUFFIX}"
        if NAME_PATTERN.fullmatch(name_or_key) and self._fs.isfile(ref):
            key = self._fs.cat_file(ref).decode().strip()
            if not self.exists(key):
                raise StoreError(f"{name_or_key} in {self.root} points to {key}, which is missing; run its stage again")
            return key
        matches = []
        if len(name_or_key) >= SHORTEST_PREFIX and re.fullmatch(r"[0-9a-f]+", name_or_key):
            matches = [key for key in self.keys() if key.startswith(name_or_key)]
        if len(matches) > 1:
            raise StoreError(f"{name_or_key!r} matches the keys {', '.join(matches)} in {self.root}; give more digits")
        if not matches:
            raise StoreError(f"no checkpoint {name_or_key!r} in {self.root}; {self._what_is_there()}")
        return matches[0]

    def _home(self, key: str) -> str:
        return f"{self._base}/checkpoints/{key}"

    def _files_home(self, manifest: Manifest) -> str:
        return f"{self._home(manifest.key)}/{manifest.folder}".rstrip("/")

    def _children(self, directory: str) -> list[str]:
        if not self._fs.isdir(directory):
            return []
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(directory, detail=False)]

    def _what_is_there(self) -> str:
        names = list(self.names())
        if not names:
            return "the store is empty; make a checkpoint with `triptych run RECIPE`, or give another store"
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return f"the store has {shown}; use one of these, or make it with `triptych run RECIPE`"

    def _commit(self, key: str, attempt_home: str, manifest: str) -> None:
        """The step that makes the checkpoint exist. Raises FileExistsError or OSError if a rival finished first."""
        if not self._local:
            self._fs.pipe_file(f"{self._home(key)}/{MANIFEST}", manifest.encode(), mode="create")
            return
        write_atomically(self._fs, f"{attempt_home}/{MANIFEST}", manifest)
        for folder, _, _ in os.walk(attempt_home):
            sync_folder(folder)
        try:
            os.rename(attempt_home, self._home(key))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self.exists(key):
                raise
            self._remove(self._home(key))  # no manifest: never a checkpoint, or no longer one
            os.rename(attempt_home, self._home(key))
        sync_folder(f"{self._base}/checkpoints")

    def _sweep(self, key: str, winner: str) -> None:
        """Remove the remains of killed or slower publishers of this key."""
        places = (f"{self._base}/checkpoints", self._home(key))
        for path in (f"{place}/{name}" for place in places for name in self._children(place)):
            if f"/{key}.attempt-" in path.removeprefix(self._base) and path != winner:
                self._remove(path)

    def _remove(self, path: str) -> None:
        if self._local:
            shutil.rmtree(path, ignore_errors=True)
        elif self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def _download(self, manifest: Manifest, target: Path) -> None:
        temporary = target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            for entry in manifest.files:
                (temporary / entry.path).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._files_home(manifest)}/{entry.path}", str(temporary / entry.path))
            local_fs, _ = url_to_fs(str(temporary))
            if found := list(differences(local_fs, str(temporary), manifest.files)):
                raise StoreError(
                    f"checkpoint {manifest.name} ({manifest.key}) is damaged or its download from {self.root} failed: "
                    f"{'; '.join(found)}. Try again; if that fails, delete it there and run {manifest.stage} again"
                )
            (temporary / MANIFEST).write_text(manifest.to_json())
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.exists():  # else another process has just downloaded it
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name) or KEY_PATTERN.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be a checkpoint's name: use letters, digits, '.', '_', '-', with '/' between parts, "
            "and not 20 hex digits, which would be a key"
        )


def _cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "triptych"
    return Path(os.environ.get("TRIPTYCH_CACHE", default)) / "checkpoints"
