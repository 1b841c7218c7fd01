"""`triptych rm MODEL ...`: delete checkpoints, unless another one was made from them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence

from checkpoint_store import Manifest, local_root, open_store
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import visible
from stages.errors import ConfigError
from workbench.store.listing import size


def command(words: Sequence[str]) -> None:
    """Run `triptych rm`. Raises ConfigError, before anything is deleted, if that was not confirmed or must not be."""
    parser = Arguments("rm", __doc__)
    parser.add_argument("names", metavar="MODEL", nargs="+", help="name, key or folder of a checkpoint")
    parser.add_root()
    parser.add_argument("--runs", action="store_true", help="also delete the run directories: metrics, samples, wandb")
    parser.add_argument("--force", action="store_true", help="delete also what other checkpoints were made from")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(words)
    store = open_store(options.root)
    keys = list(dict.fromkeys(store.resolve(name) for name in options.names))
    manifests = {manifest.key: manifest for manifest in store.survey()[0]}
    names = store.names()
    if not options.force:
        refuse_parents(keys, manifests)
    for key in keys:
        print(visible(f"{describe(key, manifests)}, named {', '.join(names_of(key, names)) or 'by no name any more'}"))
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("rm: nothing was deleted; add --yes to delete without being asked")
        if input(f"Delete {'this checkpoint' if len(keys) == 1 else f'these {len(keys)} checkpoints'}? [y/N] ") not in (
            *("y", "Y", "yes"),
        ):
            raise ConfigError("rm: nothing was deleted")
    for key in keys:
        for name in names_of(key, names):
            store.unname(name)
        store.remove(key)
        run = local_root(options.root) / "runs" / key
        if options.runs:
            shutil.rmtree(run, ignore_errors=True)
        kept = f"; its run directory is kept: {run}" if run.exists() else ""
        print(visible(f"deleted {key}{kept}"))


def refuse_parents(keys: Sequence[str], manifests: Mapping[str, Manifest]) -> None:
    """Raises ConfigError if a checkpoint that is not to be deleted was made from one that is."""
    for key in keys:
        made = [child for child in manifests.values() if key in child.parents.values() and child.key not in keys]
        if made:
            told = ", ".join(f"{child.name} ({child.key[:8]})" for child in made)
            raise ConfigError(
                f"rm: {describe(key, manifests)} is a parent of {told}, whose history would end there; "
                "delete those too, or add --force"
            )


def describe(key: str, manifests: Mapping[str, Manifest]) -> str:
    """The checkpoint in a line; its key only if its manifest is damaged."""
    manifest = manifests.get(key)
    return f"{key} (damaged)" if manifest is None else f"{manifest.stage} {key} ({size(manifest)})"


def names_of(key: str, names: Mapping[str, str]) -> list[str]:
    return [name for name, target in names.items() if target == key]
