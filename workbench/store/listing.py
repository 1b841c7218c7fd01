"""`triptych list [RECIPE]`: all checkpoints, the oldest first, with their main numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table

from checkpoint_store import Manifest, StoreError, open_store
from checkpoint_store.headline import headline, short
from checkpoint_store.lineage import warnings_of
from checkpoint_store.names import earlier
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import as_json as json_line
from pipeline.terminal.console import screen, visible

SHOWN_NUMBERS = 3
DIGITS = 12  # of a key
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def command(words: Sequence[str]) -> None:
    """Run `triptych list`. Raises StoreError after the table if a manifest cannot be read."""
    parser = Arguments("list", __doc__)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="only checkpoints whose name begins with this")
    parser.add_root()
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parser.parse_args(words)
    store = open_store(options.root)
    manifests, problems = store.survey()
    names = store.names()
    titles = titles_of(manifests, names)
    shown = [manifest for manifest in manifests if begins_with(titles[manifest.key], manifest, options.recipe)]
    if options.json:
        print(json_line([as_json(manifest, titles[manifest.key]) for manifest in shown]))
    elif not shown and not problems:
        what = f"no checkpoint of '{options.recipe}'" if options.recipe else "no checkpoints"
        raise StoreError(f"{what} in {store.root}; make some with `triptych run RECIPE`, or give another --root")
    else:
        print_list(shown, titles)
    keys = {manifest.key for manifest in manifests}
    problems += [
        f"{store.root}: the name {name} points to {key}, which is missing; run its stage again"
        for name, key in names.items()
        if key not in keys and not store.exists(key)
    ]
    if problems:
        raise StoreError(problems[0] if len(problems) == 1 else f"{len(problems)} problems: {'; '.join(problems)}")


def begins_with(title: str, manifest: Manifest, recipe: str | None) -> bool:
    return recipe is None or any(text.startswith(recipe) for text in [*title.split(", "), manifest.name])


def titles_of(manifests: Sequence[Manifest], names: Mapping[str, str]) -> dict[str, str]:
    """Key -> its names. A checkpoint whose name has moved on is NAME~1, NAME~2 ..., which every command understands."""
    titles: dict[str, list[str]] = {manifest.key: [] for manifest in manifests}
    for name, key in names.items():
        titles.get(key, []).append(name)
        for number, manifest in enumerate(earlier(name, key, manifests), start=1):
            if manifest.key not in names.values():
                titles[manifest.key].append(f"{name}~{number}")
    return {manifest.key: ", ".join(titles[manifest.key]) or f"(was {manifest.name})" for manifest in manifests}


def print_list(manifests: Sequence[Manifest], titles: Mapping[str, str]) -> None:
    console = screen()
    table = Table(box=None, pad_edge=False)
    for column in ("name", "stage", "key", "age", "size", "numbers"):
        table.add_column(column, justify="right" if column in ("age", "size") else "left", overflow="fold")
    for manifest in manifests:
        numbers = list(headline(manifest.stage, manifest.metrics).items())[:SHOWN_NUMBERS]
        told = [f"{words} {short(value)}" for words, value in numbers]
        if warnings := warnings_of(manifest):
            told.append(f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}")
        row = (titles[manifest.key], manifest.stage, manifest.key[:DIGITS], age(manifest), size(manifest))
        table.add_row(*map(visible, (*row, ", ".join(told))))
    console.print(table)


def as_json(manifest: Manifest, title: str) -> dict[str, object]:
    return {
        "name": title,
        "key": manifest.key,
        "stage": manifest.stage,
        "created": manifest.created,
        "bytes": sum(file.size for file in manifest.files),
        "numbers": headline(manifest.stage, manifest.metrics),
        "warnings": warnings_of(manifest),
    }


def age(manifest: Manifest) -> str:
    """How long ago the checkpoint was published, in its largest unit."""
    created = datetime.fromisoformat(manifest.created)
    created = created if created.tzinfo else created.replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - created).total_seconds()))
    unit, name = next(((unit, name) for unit, name in UNITS if seconds >= unit), UNITS[-1])
    return f"{seconds // unit} {name}"


def size(manifest: Manifest) -> str:
    """The size of the checkpoint's files."""
    n = float(sum(file.size for file in manifest.files))
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            break
        n, unit = n / 1000, "TB"
    return f"{n:.3g} {unit}"
