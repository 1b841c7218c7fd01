"""Immutable checkpoints with manifests, names and lineage. Handles files, not models."""

from checkpoint_store.errors import StoreError
from checkpoint_store.lineage import format_lineage, lineage
from checkpoint_store.manifest import FileEntry, Manifest, code_state, stage_key
from checkpoint_store.roots import Root, local_root, open_store, parse_root
from checkpoint_store.store import CheckpointStore

__all__ = [
    "CheckpointStore",
    "FileEntry",
    "Manifest",
    "Root",
    "StoreError",
    "code_state",
    "format_lineage",
    "lineage",
    "local_root",
    "open_store",
    "parse_root",
    "stage_key",
]
