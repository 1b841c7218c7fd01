"""Roots: where a command's results are. A root is a local folder, or the address of one in a bucket, whose store is
there while run directories stay on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from checkpoint_store.errors import StoreError
from checkpoint_store.store import CheckpointStore

Root = Path | str  # a local folder, or an address such as s3://bucket/folder
LOCAL = Path("out")  # for run directories and summaries, if the root is an address
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


def parse_root(text: str) -> Root:
    """A root from the command line. Raises StoreError for an address that no installed file system serves."""
    if re.match(r"[a-z][a-z0-9]+:/+", text) and not ADDRESS.match(text):  # pathlib would make it a folder "s3:"
        raise StoreError(f"'{text}' is not an address; write two slashes after the colon, as in s3://bucket/folder")
    if not ADDRESS.match(text):
        return Path(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    open_store(text)
    return text.rstrip("/")


def open_store(root: Root) -> CheckpointStore:
    """The checkpoint store below a root."""
    return CheckpointStore(root / "store" if isinstance(root, Path) else f"{root}/store")


def local_root(root: Root) -> Path:
    """The local folder below which a root's run directories, summaries and reports are."""
    return root if isinstance(root, Path) else LOCAL
