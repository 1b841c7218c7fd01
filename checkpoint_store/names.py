"""Names of checkpoints: what may be one, the files that hold them, and the hints when one is not found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from fsspec import AbstractFileSystem

from checkpoint_store.errors import StoreError
from checkpoint_store.manifest import KEY_PATTERN, Manifest

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
REF_SUFFIX = ".ref"
RECORD = "metrics.jsonl"  # what makes a folder whose name is a key a run directory
SHOWN_NAMES = 20


def check_name(name: str) -> None:
    """Raises StoreError for a text that cannot be a checkpoint's name."""
    if not NAME_PATTERN.fullmatch(name) or KEY_PATTERN.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be a checkpoint's name: use letters, digits, '.', '_', '-', with '/' between parts, "
            "and not 20 hex digits, which would be a key"
        )


def list_names(fs: AbstractFileSystem, refs: str) -> list[str]:
    """All names with a file in the folder `refs`, sorted. Files that cannot be a name's are left out."""
    paths = [path for path in fs.find(refs) if path.endswith(REF_SUFFIX)] if fs.isdir(refs) else []
    names = (path.removeprefix(refs).strip("/").removesuffix(REF_SUFFIX) for path in paths)
    return sorted(name for name in names if NAME_PATTERN.fullmatch(name))


def read_name(fs: AbstractFileSystem, refs: str, name: str) -> str | None:
    """The key that a name points to; None if there is no such name. Raises StoreError for a damaged file."""
    path = f"{refs}/{name}{REF_SUFFIX}"
    if not NAME_PATTERN.fullmatch(name) or not fs.isfile(path):
        return None
    key: str = fs.cat_file(path)[:100].decode(errors="replace").strip()
    if not KEY_PATTERN.fullmatch(key):
        raise StoreError(
            f"{path} is damaged: it must be one line with a key of 20 hex digits; delete the file and run the recipe "
            "again, which names the checkpoint that is there"
        )
    return key


def key_of_folder(named: str, checkpoints: str) -> str | None:
    """The key that is a folder's name, if it is one in `checkpoints` or a run directory; None for anything else."""
    folder = Path(named).expanduser()
    if not named.strip() or not folder.is_dir() or not KEY_PATTERN.fullmatch(folder.resolve().name):
        return None
    ours = folder.resolve().parent == Path(checkpoints).resolve() or (folder / RECORD).is_file()
    return folder.resolve().name if ours else None


def earlier(name: str, key: str, manifests: Sequence[Manifest]) -> list[Manifest]:
    """The checkpoints published under `name` that are not `key`, which has it now; the latest first. `manifests` are
    those of the store, the oldest first."""
    return [manifest for manifest in reversed(manifests) if manifest.name == name and manifest.key != key]


def not_found(named: str, names: Collection[str]) -> str:
    """What to do instead of using `named`, which is not in a store that has `names`."""
    if named.strip() and Path(named).expanduser().is_dir():
        return "that is a folder outside the store, of which no history is kept; give a name or a key"
    if not names:
        return "the store is empty; make a checkpoint with `triptych run RECIPE`, or give another store"
    hint, shown = "the store has", list(names)
    if stages := [name for name in names if name.startswith(f"{named}/")]:
        hint, shown = "that is a recipe's name, add the stage: there are", stages
    elif near := difflib.get_close_matches(named.replace("-", "_"), names, n=1):
        hint = f"did you mean {near[0]}? the store has"
    more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
    listed = ", ".join(shown[:SHOWN_NAMES]) + more
    return f"{hint} {listed}; use one of these, or make it with `triptych run RECIPE`"
