"""Checks before a pipeline's first stage: the tokenizer of every stage that will run, and the first rows of its data.
An error found here costs no training time.

Checks that need all rows (lengths, duplicates) are left to `triptych data inspect`. Data sets on the hub are checked by
their stage, since reading them may require a download.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from checkpoint_store import CheckpointStore
from data_schema import Comparison, DataError, Demonstration, Document, Prompt, Records, Source, load
from data_schema.locations import HubLocation, locate
from pipeline.architecture import reads_with_encoder
from pipeline.plan import StagePlan
from stages.data_checks.findings import Finding
from stages.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 32  # checked of each source
# stage -> its settings that name data -> the kind of record they must contain
READS: dict[str, dict[str, type]] = {
    "sft": {"data": Demonstration, "pretraining_data": Document},
    "comparisons": {"prompts": Prompt},
    "reward_model": {"data": Comparison, "demonstrations": Demonstration},
    "select": {"prompts": Prompt},
    "ppo": {"prompts": Prompt, "pretraining_data": Document},
    "evaluate": {"prompts": Prompt},
}


def check_stages(plans: Sequence[StagePlan], to_run: Collection[str], store: CheckpointStore, seed: int) -> None:
    """Raises ConfigError, DataError or ModelError, in one line, for the first error that a stage to run would hit."""
    from stages.data_checks.tokenizer_checks import tokenizer_findings

    tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
    samples: dict[tuple[str, type], list[Any]] = {}
    for plan in plans:
        if plan.stage not in to_run:
            continue
        sft = _sft_of(plan, plans, to_run)
        where = sft.key if sft else str(plan.outside.get("sft") or plan.parents.get("sft"))
        if where not in tokenizers:
            tokenizer = tokenizers[where] = _tokenizer(plan, sft, store)
            if tokenizer is not None:
                _refuse(plan.stage, tokenizer_findings(tokenizer, own_template=False))
        for setting, kind in READS.get(plan.stage, {}).items():
            for source in getattr(plan.config, setting):
                if (place := (repr(source), kind)) not in samples:
                    samples[place] = first_rows(source, kind, seed)
                findings = row_findings(samples[place], tokenizers[where])
                _refuse(f"{plan.stage}.{setting} ({source.path})", findings)


def _sft_of(plan: StagePlan, plans: Sequence[StagePlan], to_run: Collection[str]) -> StagePlan | None:
    """The plan of the SFT stage whose model this stage reads or makes; None if that model is published already."""
    if hasattr(plan.config, "base_model"):
        return plan
    made = (other for other in plans if other.stage in to_run and other.key == plan.parents.get("sft"))
    maker = next(made, None)
    return maker if maker is None else _sft_of(maker, plans, to_run)  # `select` passes on what it read


def _tokenizer(plan: StagePlan, sft: StagePlan | None, store: CheckpointStore) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the stage will use; None if a checkpoint is missing, which the runner reports, or for an
    encoder-decoder, whose prompts are encoded separately."""
    from policy.encoding import set_template
    from policy.language_model import load_tokenizer

    if sft is None:
        key = plan.parents.get("sft")
        directory = store.path(key) if key and store.exists(key) else plan.outside.get("sft")
        return None if directory is None or reads_with_encoder(str(directory)) else load_tokenizer(directory)
    if reads_with_encoder(sft.config.base_model):
        return None
    tokenizer = load_tokenizer(sft.config.base_model)
    if sft.config.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": sft.config.pad_token})
    set_template(tokenizer, sft.config.template)
    return tokenizer


def _refuse(where: str, findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.severity == "error":
            raise ConfigError(f"{where}: {finding.text}; {finding.cure}")


def row_findings(rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase | None) -> list[Finding]:
    """Findings from encoding these rows; none for documents, which have no template."""
    from stages.data_checks.lengths import token_lengths

    if tokenizer is None or not rows or isinstance(rows[0], Document):
        return []
    return token_lengths(rows, type(rows[0]), tokenizer)[1]


def first_rows(source: Source, kind: type, seed: int) -> list[Any]:
    """The source's first usable rows; none of a data set on the hub."""
    if isinstance(locate(source.path), HubLocation):
        return []
    limit = ROWS if source.limit is None else min(ROWS, source.limit)
    logger = logging.getLogger("triptych.data")
    before = logger.level
    logger.setLevel(logging.ERROR)  # the stage will log drops and warnings of the whole source
    try:
        records: Records[Any]
        try:
            records = load(replace(source, limit=limit), kind, seed)
        except DataError:
            records = load(source, kind, seed)  # all of its first rows may be dropped
    finally:
        logger.setLevel(before)
    return list(islice(records, ROWS))
