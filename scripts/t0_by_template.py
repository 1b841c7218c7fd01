"""Split T0's training data, one file with an index of template names, into one file for each template.

    python scripts/t0_by_template.py t0.jsonl.gz t0.index.tsv t0 --hold-out paws_labeled_final amazon_polarity

writes t0/train/TEMPLATE.jsonl, and t0/held_out/TEMPLATE.jsonl for templates whose names begin with a held-out family.
The index has one line for each row, in the same order: the template's name, a tab, anything.

Other templates whose rows all have the same answer go to t0/one_answer. A sample from the beginnings of sorted files
has many of them (imdb: all negative), and they teach that answer whatever the question. With --longest-answer N,
templates with an answer of more than N characters go to t0/long_answers.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # also runs from a checkout without installation

from data_schema.errors import printable
from data_schema.formats.table import GPT3_END


def split_by_template(
    data: Path, index: Path, out: Path, held_out: Sequence[str], longest_answer: int | None = None
) -> dict[str, int]:
    """Write the files -> rows in each part. Raises ValueError for a wrong index, an unknown family or a bad row."""
    raw = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    rows = raw.decode().rstrip("\n").split("\n")
    names = [line.split("\t")[0] for line in index.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if len(rows) != len(names):
        raise ValueError(f"{data} has {len(rows)} rows, but {index} has {len(names)}; give the index of this file")
    for family in held_out:
        if not any(name.startswith(f"{family}_") for name in names):
            raise ValueError(f"no template in {index} begins with {family}_; check the name of the family")
    templates: dict[str, list[str]] = {}
    for row, name in zip(rows, names, strict=True):
        templates.setdefault(name, []).append(row)
    counts: dict[str, int] = {}
    for name, members in templates.items():
        held = any(name.startswith(f"{family}_") for family in held_out)
        part = "held_out" if held else _part(members, longest_answer)
        counts[part] = counts.get(part, 0) + len(members)
        path = out / part / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(members) + "\n", encoding="utf-8")
    return counts


def _part(rows: Sequence[str], longest_answer: int | None) -> str:
    try:
        answers = [str(json.loads(row)["completion"]).removesuffix(GPT3_END).strip() for row in rows]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError("a row is not a JSON object with 'prompt' and 'completion'; give T0's own rows") from error
    if len(rows) > 1 and len(set(answers)) == 1:
        return "one_answer"
    return "train" if longest_answer is None or max(map(len, answers)) <= longest_answer else "long_answers"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="T0's rows: .jsonl, or compressed as .gz")
    parser.add_argument("index", type=Path, help="index of template names, one line per row")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--hold-out", nargs="*", default=[], metavar="FAMILY", help="families to hold out")
    parser.add_argument("--longest-answer", type=int, metavar="N", help="see above; in characters (default: none)")
    options = parser.parse_args(arguments)
    try:
        counts = split_by_template(options.data, options.index, options.out, options.hold_out, options.longest_answer)
    except (OSError, ValueError) as error:
        print(f"t0_by_template: {printable(str(error))}", file=sys.stderr)
        return 2
    print(", ".join(f"{printable(part)}: {count} rows" for part, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
