"""Loads SFT's demonstrations: read, mixed, split, and with reasoning and exemplars, as the recipe sets them."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from data_schema import Demonstration, Records
from data_schema.few_shot import add_rationales, reword
from data_schema.mixtures import load_mixture
from stages.data_checks.one_answer import one_answer_findings
from stages.doubts import rows_lost
from stages.job import Job, data_account, keep_back
from stages.sft.settings import SftConfig

logger = logging.getLogger("triptych.sft")


class Demonstrations(NamedTuple):
    records: Records[Demonstration]  # all demonstrations, or one epoch of the mixture
    train: Records[Demonstration]  # as trained on: with reasoning and exemplars
    held_out: Records[Demonstration]  # as measured on: with reasoning, without exemplars
    seen: Records[Demonstration]  # those of `train` as read; the checkpoint stores their prompts' hashes
    parts: dict[str, Any]  # of the mixture, for the manifest; empty without one

    def account(self, too_long: int) -> dict[str, Any]:
        """Counts of used and dropped demonstrations, for the manifest."""
        return data_account(self.records, too_long=too_long) | ({"mixture": self.parts} if self.parts else {})


def load_demonstrations(config: SftConfig, job: Job) -> Demonstrations:
    """Read and mix `config.data`, hold out a share, add reasoning and exemplars. Raises DataError for unusable data."""
    records, parts = load_mixture(config.data, Demonstration, config.mixture, job.seed)
    for finding in one_answer_findings(records):
        logger.warning("sft: %s; %s", finding.text, finding.cure)
    seen, held_out = keep_back(records, config.held_out, job.seed, "sft.held_out")
    train = reword(seen, config.chain_of_thought, config.few_shot, job.seed)
    if config.chain_of_thought is not None:
        held_out = add_rationales(held_out, config.chain_of_thought, job.seed).records
    return Demonstrations(records, train, held_out, seen, parts)


def lost_demonstrations(config: SftConfig, read: Demonstrations, too_long: int) -> str | None:
    """A warning if many demonstrations are left out, or None."""
    dropped = read.account(too_long)["dropped"]
    total = len(read.records) + sum(dropped.values()) - too_long
    return rows_lost("sft.data", total, dropped, {"too long": f"raise sft.max_length (here {config.max_length})"})
