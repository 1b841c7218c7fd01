"""`triptych check MODEL`: what triptych relies on in a model, tried one by one, as a table.

It says whether the model is read in the fast way, in an exact slower way, needs a setting, or is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from checkpoint_store import StoreError, open_store
from pipeline.runner import quiet_libraries
from pipeline.terminal.arguments import Arguments
from pipeline.terminal.console import as_json, screen, visible
from stages.errors import ConfigError

if TYPE_CHECKING:
    from reward.conformance import Fact


def command(words: Sequence[str]) -> None:
    """Run `triptych check`. Raises ModelError or ConfigError if no stage can use the model."""
    parser = Arguments("check", __doc__)
    parser.add_argument("model", metavar="MODEL", help="directory, checkpoint (name or key), or name on the hub")
    parser.add_root()
    parser.add_argument("--pad-token", metavar="TOKEN", help="the recipe's sft.pad_token")
    parser.add_argument("--config-only", action="store_true", help="do not load the weights")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args(words)
    quiet_libraries()
    logging.getLogger("triptych.model").setLevel(logging.WARNING)  # the table says it
    try:
        place = open_store(options.root).open(options.model)[0]
    except StoreError:
        place = Path(options.model)
    from reward.conformance import model_facts, refused  # loads torch

    facts = model_facts(str(place), options.pad_token, with_weights=not options.config_only)
    if options.json:
        print(as_json([fact._asdict() for fact in facts], indent=1))
    else:
        print_facts(options.model, facts)
    if (why := refused(facts)) is not None:
        raise ConfigError(f"'{options.model}' cannot be used: {why}")


def print_facts(name: str, facts: Sequence[Fact]) -> None:
    """Print the table, and what has to be set."""
    console = screen()
    table = Table(title=Text(visible(name)), title_justify="left")
    for column in ("checked", "found", "state"):
        table.add_column(column, overflow="fold")
    for fact in facts:
        table.add_row(*(Text(visible(part)) for part in (fact.about, fact.found, fact.state)))
    console.print(table)
    slower = sum(fact.state == "slower" for fact in facts)
    if slower:
        console.print(f"{slower} of {len(facts)} are exact in a slower way; docs/models.md says what that costs.")
    if any(fact.state == "set" for fact in facts):
        console.print("What says 'set' needs that setting in the recipe.")
