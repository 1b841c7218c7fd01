"""Copies a checkpoint from a bucket to the local disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from checkpoint_store.errors import StoreError
from checkpoint_store.files import MANIFEST, differences
from checkpoint_store.manifest import Manifest


def cache_folder() -> Path:
    """Where downloaded checkpoints are kept: TRIPTYCH_CACHE, or triptych in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "triptych"
    return Path(os.environ.get("TRIPTYCH_CACHE", default)) / "checkpoints"


def download(fs: AbstractFileSystem, source: str, manifest: Manifest, target: Path) -> None:
    """Copy a checkpoint's files from the folder `source` to `target`, which appears only when it is complete and its
    hashes are right. Raises StoreError if they are not."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        for entry in manifest.files:
            (temporary / entry.path).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{source}/{entry.path}", str(temporary / entry.path))
        local_fs, _ = url_to_fs(str(temporary))
        if found := list(differences(local_fs, str(temporary), manifest.files)):
            raise StoreError(
                f"checkpoint {manifest.name} ({manifest.key}) is damaged or its download from {source} failed: "
                f"{'; '.join(found)}. Try again; if that fails, delete it there and run {manifest.stage} again"
            )
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.exists():  # else another process has just downloaded it
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
