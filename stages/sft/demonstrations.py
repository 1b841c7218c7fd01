"""What stage 1 is trained on: demonstrations read, mixed, parted, and worded as the recipe says."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from data_schema import Demonstration, Records
from data_schema.few_shot import add_rationales, reword
from data_schema.mixtures import load_mixture
from stages.data_checks.one_answer import one_answer_findings
from stages.job import Job, data_account, keep_back
from stages.sft.settings import SftConfig

logger = logging.getLogger("triptych.sft")


class Demonstrations(NamedTuple):
    records: Records[Demonstration]  # all that were read, or an epoch of the mixture
    train: Records[Demonstration]  # as they are trained on
    held_out: Records[Demonstration]  # as they are measured on: with reasoning, without exemplars
    seen: Records[Demonstration]  # those of `train` as they were read, whose prompts a checkpoint remembers
    parts: dict[str, Any]  # of the mixture; empty without one

    def account(self, too_long: int) -> dict[str, Any]:
        """For the manifest."""
        return data_account(self.records, too_long=too_long) | ({"mixture": self.parts} if self.parts else {})


def load_demonstrations(config: SftConfig, job: Job) -> Demonstrations:
    """Read `config.data`, mix it, keep a share back, add reasoning and exemplars. Raises DataError as these do."""
    records, parts = load_mixture(config.data, Demonstration, config.mixture, job.seed)
    for finding in one_answer_findings(records):
        logger.warning("sft: %s; %s", finding.text, finding.cure)
    seen, held_out = keep_back(records, config.held_out, job.seed)
    train = reword(seen, config.chain_of_thought, config.few_shot, job.seed)
    if config.chain_of_thought is not None:
        held_out = add_rationales(held_out, config.chain_of_thought, job.seed).records
    return Demonstrations(records, train, held_out, seen, parts)
