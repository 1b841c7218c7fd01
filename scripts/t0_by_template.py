"""T0's training data in one file, with an index of template names, as a file for each template.

    python scripts/t0_by_template.py t0.jsonl.gz t0.index.tsv t0 --hold-out paws_labeled_final amazon_polarity

writes t0/train/TEMPLATE.jsonl, and t0/held_out/TEMPLATE.jsonl for the templates whose names begin with a held-out
family. The index has a line for each row, in the same order: the template's name, a tab, anything.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path


def split_by_template(data: Path, index: Path, out: Path, held_out: Sequence[str]) -> dict[str, int]:
    """-> rows in each part. Raises ValueError where data and index do not fit, or a family has no row."""
    raw = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    rows = raw.decode().rstrip("\n").split("\n")
    names = [line.split("\t")[0] for line in index.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if len(rows) != len(names):
        raise ValueError(f"{data} has {len(rows)} rows, but {index} names {len(names)} templates; give the file's own")
    for family in held_out:
        if not any(name.startswith(f"{family}_") for name in names):
            raise ValueError(f"no template in {index} begins with {family}_; check the name")
    counts = {"train": 0, "held_out": 0}
    texts: dict[Path, str] = {}
    for row, name in zip(rows, names, strict=True):
        part = "held_out" if any(name.startswith(f"{family}_") for family in held_out) else "train"
        counts[part] += 1
        path = out / part / f"{name}.jsonl"
        texts[path] = texts.get(path, "") + row + "\n"
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hold-out", nargs="*", default=[], metavar="FAMILY")
    options = parser.parse_args(arguments)
    try:
        counts = split_by_template(options.data, options.index, options.out, options.hold_out)
    except (OSError, ValueError) as error:
        print(f"t0_by_template: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{part}: {count} rows" for part, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
