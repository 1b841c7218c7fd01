"""`triptych log MODEL`: the history of a checkpoint, from the base model on: numbers, parents, data, code."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint_store import format_lineage, open_store
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import visible


def command(words: Sequence[str]) -> None:
    """Run `triptych log`."""
    parser = Arguments("log", __doc__)
    parser.add_argument("name", metavar="MODEL", help="name such as quickstart/ppo, key, or folder of a checkpoint")
    parser.add_root()
    parser.add_argument("--verbose", action="store_true", help="show fingerprints, every metric and every setting")
    options = parser.parse_args(words)
    for line in format_lineage(open_store(options.root), options.name, options.verbose).splitlines():
        print(visible(line))
