"""Try every causal language model of transformers and write the table in docs/models.md.

    python scripts/architectures.py                        # all (several minutes); writes the table
    python scripts/architectures.py --only llama mamba     # prints what was found, and writes nothing
    python scripts/architectures.py --parts                # only whether each can be read in two parts; writes that

Each architecture is built tiny with random weights, saved, and loaded as a recipe would. What triptych computes with it
is compared with the model's own forward pass of one text at a time, in float64 where the architecture allows.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # also runs from a checkout without installation

import transformers

from scripts.conformance.configs import names
from scripts.conformance.parts import FOUND, Parts, try_in_parts
from scripts.conformance.trial import Outcome, try_architecture

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- made by scripts/architectures.py: begin -->", "<!-- end -->"
PARTS_BEGIN, PARTS_END = "<!-- parts, by scripts/architectures.py: begin -->", "<!-- end of parts -->"
STATES = {
    "exact": "exact",
    "slower": "exact, slower",
    "limited": "in part",
    "refused": "refused",
    "not tried": "not tried",
}
WIDEST = 158  # characters of a row


def table(outcomes: Sequence[Outcome]) -> str:
    """The Markdown between the markers."""
    counts = "; ".join(
        f"{sum(outcome.state == state for outcome in outcomes)} {words}" for state, words in STATES.items()
    )
    lines = [
        f"transformers {transformers.__version__}: {counts}.",
        "",
        "| architecture | result | how |",
        "|---|---|---|",
    ]
    for outcome in outcomes:
        row = f"| {outcome.name} | {STATES[outcome.state]} | {shortened(outcome)}"
        lines.append((row if len(row) <= WIDEST else f"{row[: WIDEST - 4]} ...") + " |")
    return "\n".join(lines)


def shortened(outcome: Outcome) -> str:
    """Notes in a few words: of a refusal, what is wrong and not how to fix it, which is the same for all."""
    notes = [note.split(": ", 1)[-1] if outcome.state == "limited" else note for note in outcome.notes]
    return ", ".join(dict.fromkeys(re.split(r"[;:]|, (?:so|and|which) ", note)[0] for note in notes))


def with_table(page: str, outcomes: Sequence[Outcome]) -> str:
    """The page with the table between its markers replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(outcomes)}\n\n{END}{rest.split(END, 1)[1]}"


def parts_list(found: Sequence[Parts]) -> str:
    """The Markdown between the markers of what can be read in two parts: those that cannot are named."""
    named = {state: sorted(part.name for part in found if part.state == state) for state in FOUND}
    lines = [
        f"transformers {transformers.__version__}: {len(named['exact'])} of {len(found)} are exact. The others:",
        "",
    ]
    for state, words in FOUND.items():
        if state != "exact":
            text = f"- **{words}**: {'; '.join(named[state])}"
            lines.append(
                textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            )
    return "\n".join(lines)


def with_parts(page: str, found: Sequence[Parts]) -> str:
    """The page with that list replaced."""
    before, rest = page.split(PARTS_BEGIN)
    return f"{before}{PARTS_BEGIN}\n\n{parts_list(found)}\n\n{PARTS_END}{rest.split(PARTS_END, 1)[1]}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures to try; the page is not written")
    parser.add_argument("--parts", action="store_true", help="try only whether they can be read in two parts")
    arguments = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parts = [try_in_parts(name) for name in arguments.only or names()]
    for part in parts if arguments.parts or arguments.only else ():
        print(f"{part.name:30} in two parts: {FOUND[part.state]}", flush=True)
    if not arguments.only:
        PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")
    if arguments.parts:
        return 0
    outcomes: list[Outcome] = []
    for name in arguments.only or names():
        outcomes.append(try_architecture(name))
        print(f"{name:30} {outcomes[-1].state:10} {' | '.join(outcomes[-1].notes)}", flush=True)
    failed = [outcome.name for outcome in outcomes if outcome.state not in STATES]
    if failed:
        print(f"wrong or failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    if not arguments.only:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), outcomes), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
