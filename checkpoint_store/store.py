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

from checkpoint_store.download import cache_folder, download
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
from checkpoint_store.names import REF_SUFFIX, check_name, earlier, key_of_folder, list_names, not_found, read_name

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
        self._refs = f"{self._base}/refs"
        self._local = is_local(self._fs)

    def exists(self, key: str) -> bool:
        return KEY_PATTERN.fullmatch(key) is not None and self._fs.isfile(f"{self._home(key)}/{MANIFEST}")

    def keys(self) -> tuple[str, ...]:
        """Keys of all checkpoints, sorted, without the remains of killed publishers."""
        return tuple(key for key in sorted(self._children(f"{self._base}/checkpoints")) if self.exists(key))

    def manifest(self, key: str) -> Manifest:
        path = f"{self._home(key)}/{MANIFEST}"
        if not self.exists(key):
            raise StoreError(f"no checkpoint has the key {key!r} in {self.root}; {not_found(key, self.names())}")
        manifest = Manifest.from_json(self._fs.cat_file(path), where=path)
        if manifest.key != key:
            raise StoreError(
                f"{path}: it belongs to the checkpoint {manifest.key}, not to the folder it is in; restore it from a "
                "copy, or delete that folder and run its stage again"
            )
        return manifest

    def survey(self) -> tuple[list[Manifest], list[str]]:
        """All manifests, the oldest first, and a line for each that cannot be read."""
        found: list[Manifest] = []
        problems: list[str] = []
        for key in self.keys():
            try:
                found.append(self.manifest(key))
            except StoreError as error:
                problems.append(str(error))
        return sorted(found, key=lambda manifest: (manifest.created, manifest.key)), problems

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
        check_name(name)
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
        cached = cache_folder() / f"{key}-{digest}"
        local_fs, _ = url_to_fs(str(cached))
        if str(cached) in _verified:
            return cached
        if cached.exists() and list(differences(local_fs, str(cached), manifest.files)):
            shutil.rmtree(cached)
        if not cached.exists():
            download(self._fs, self._files_home(manifest), manifest, cached)
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
        check_name(name)
        if not self.exists(key):
            raise StoreError(
                f"cannot name {key!r} {name!r}: no such key in {self.root}; {not_found(name, self.names())}"
            )
        try:
            before = read_name(self._fs, self._refs, name)
        except StoreError:
            before = None  # a damaged file is replaced
        if before != key:  # a name that is right is not written again: the store may be read-only
            write_atomically(self._fs, f"{self._refs}/{name}{REF_SUFFIX}", key + "\n")

    def unname(self, name: str) -> None:
        """Remove a name; its checkpoint stays."""
        check_name(name)
        self._fs.rm_file(f"{self._refs}/{name}{REF_SUFFIX}")

    def names(self) -> dict[str, str]:
        """All names, sorted, and the keys they point to. Raises StoreError for a damaged file of a name."""
        found = {name: read_name(self._fs, self._refs, name) for name in list_names(self._fs, self._refs)}
        return {name: key for name, key in found.items() if key is not None}

    def resolve(self, named: str) -> str:
        """The key for a name, a key, a key's first digits (at least 4), NAME~N for the Nth checkpoint before the one
        that has the name, a checkpoint's folder in this store, or a stage's run directory.

        Raises StoreError for none or several."""
        if (key := key_of_folder(named, f"{self._base}/checkpoints")) is not None:
            if self.exists(key):
                return key
            raise StoreError(
                f"the stage of {named} did not finish, or its checkpoint is in another store; run it again"
            )
        name, _, back = named.rpartition("~")
        if back.isdecimal() and (key := read_name(self._fs, self._refs, name)) is not None:
            before = earlier(name, key, self.survey()[0])
            if not 0 < int(back[:9]) <= len(before):
                raise StoreError(f"{named}: {name} has {len(before)} earlier checkpoints; `triptych list` shows them")
            return before[int(back) - 1].key
        if (key := read_name(self._fs, self._refs, named)) is not None:
            if not self.exists(key):
                raise StoreError(f"{named} in {self.root} points to {key}, which is missing; run its stage again")
            return key
        matches = []
        if len(named) >= SHORTEST_PREFIX and re.fullmatch(r"[0-9a-f]+", named):
            matches = [key for key in self.keys() if key.startswith(named)]
        if len(matches) > 1:
            raise StoreError(f"{named!r} matches the keys {', '.join(matches)} in {self.root}; give more digits")
        if not matches:
            names = list_names(self._fs, self._refs)
            raise StoreError(f"no checkpoint {named!r} in {self.root}; {not_found(named, names)}")
        return matches[0]

    def locate(self, named: str) -> str | Path:
        """What a recipe or a command means by `named`: a model's folder outside the store, or else a key as `resolve`
        finds it. Raises StoreError for none or several."""
        folder = Path(named).expanduser()
        outside = named.strip() != "" and folder.is_dir() and key_of_folder(named, f"{self._base}/checkpoints") is None
        return folder if outside else self.resolve(named)

    def open(self, named: str) -> tuple[Path, Manifest | None]:
        """The folder of what `locate` finds, its hashes verified, and its manifest if it is in the store."""
        place = self.locate(named)
        return (place, None) if isinstance(place, Path) else (self.path(place), self.manifest(place))

    def _home(self, key: str) -> str:
        return f"{self._base}/checkpoints/{key}"

    def _files_home(self, manifest: Manifest) -> str:
        return f"{self._home(manifest.key)}/{manifest.folder}".rstrip("/")

    def _children(self, directory: str) -> list[str]:
        if not self._fs.isdir(directory):
            return []
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(directory, detail=False)]

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
