"""`triptych diff MODEL MODEL`: what differs between two checkpoints of a stage: settings, data, parents, numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from checkpoint_store import Manifest, open_store
from checkpoint_store.headline import headline
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import screen, visible
from stages.errors import ConfigError
from workbench.store.listing import titles_of
from workbench.store.show import as_text, flat

ABSENT = "-"


def command(words: Sequence[str]) -> None:
    """Run `triptych diff`. Raises ConfigError for checkpoints of two stages."""
    parser = Arguments("diff", __doc__)
    parser.add_argument("one", metavar="MODEL", help="name, key or folder of a checkpoint; NAME~1 is an earlier one")
    parser.add_argument("other", metavar="MODEL", help="another one of the same stage")
    parser.add_root()
    parser.add_argument("--verbose", action="store_true", help="compare every metric, not only the main numbers")
    options = parser.parse_args(words)
    store = open_store(options.root)
    one, other = (store.manifest(store.resolve(name)) for name in (options.one, options.other))
    if one.stage != other.stage:
        raise ConfigError(
            f"diff: {options.one} is a checkpoint of {one.stage}, {options.other} of {other.stage}; "
            "give two of the same stage"
        )
    titles = titles_of(store.survey()[0], store.names())
    rows = list(differences(one, other, titles, options.verbose))
    if not rows:
        same = f"are the same checkpoint, {one.key}"
        found = same if one.key == other.key else "differ in nothing that their manifests record"
        print(visible(f"{options.one} and {options.other} {found}"))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", options.one, options.other):
        table.add_column(visible(column), overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    screen().print(table)


def differences(
    one: Manifest, other: Manifest, titles: Mapping[str, str], verbose: bool
) -> Iterator[tuple[str, str, str]]:
    """Yield (what, its value in one, its value in the other) for everything that differs."""

    def parents(manifest: Manifest) -> dict[str, str]:
        return {role: f"{titles.get(key, 'missing')} ({key[:8]})" for role, key in manifest.parents.items()}

    def data(manifest: Manifest) -> dict[str, Any]:
        return flat({role: of_data(row) for role, row in manifest.data.items()})

    def numbers(manifest: Manifest) -> Mapping[str, Any]:
        return flat(manifest.metrics) if verbose else headline(manifest.stage, manifest.metrics)

    parts: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("", {"seed": one.seed}, {"seed": other.seed}),
        ("", flat(one.config), flat(other.config)),
        ("parent ", parents(one), parents(other)),
        ("data ", data(one), data(other)),
        ("code ", flat(one.code), flat(other.code)),
        ("library ", one.libraries, other.libraries),
        ("", numbers(one), numbers(other)),
    ]
    for title, before, after in parts:
        for name in dict.fromkeys([*before, *after]):
            a, b = (as_text(values[name]) if name in values else ABSENT for values in (before, after))
            if before.get(name, ABSENT) != after.get(name, ABSENT):
                yield f"{title}{name}", a, b


def of_data(account: Mapping[str, Any]) -> dict[str, Any]:
    """A data source's account with a fingerprint short enough for a table."""
    found = dict(account)
    if "fingerprint" in found:
        prints = found["fingerprint"]
        found["fingerprint"] = ", ".join(str(each)[:12] for each in (prints if isinstance(prints, list) else [prints]))
    return found
