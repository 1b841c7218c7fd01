"""`triptych verify [MODEL ...]`: compare the files of checkpoints with the hashes in their manifests."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from checkpoint_store import StoreError, open_store
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import one_line


def command(words: Sequence[str]) -> None:
    """Run `triptych verify`. Raises StoreError after the last checkpoint if any is damaged."""
    parser = Arguments("verify", __doc__)
    parser.add_argument("names", metavar="MODEL", nargs="*", help="name, key or folder of a checkpoint (default: all)")
    parser.add_root()
    options = parser.parse_args(words)
    store = open_store(options.root)
    keys = [store.resolve(name) for name in options.names] or list(store.keys())
    if not keys:
        raise StoreError(
            f"no checkpoints in {store.root}; make some with `triptych run RECIPE`, or give another --root"
        )
    problems = []
    for key in keys:
        try:
            store.verify(key)
            manifest = store.manifest(key)
            print(f"{key} {one_line(manifest.name)}: all files match their published hashes")
            problems += [
                f"{manifest.name} ({key}): its parent '{role}' {parent} is missing; run the pipeline again to make it"
                for role, parent in manifest.parents.items()
                if not store.exists(parent)
            ]
        except StoreError as error:
            problems.append(str(error))
    if not options.names:
        problems += [
            f"the name {name} points to {key}, which is missing; run its stage again"
            for name, key in store.names().items()
            if not store.exists(key)
        ]
    if len(problems) == 1:
        raise StoreError(problems[0])
    for problem in problems:
        print(one_line(problem), file=sys.stderr)
    if problems:
        raise StoreError(f"{len(problems)} problems in {len(keys)} checkpoints; see the lines above")
