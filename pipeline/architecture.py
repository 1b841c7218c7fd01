"""Checks before a run whether the stages support the base model. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.plan import StagePlan
from stages.errors import ConfigError


def refuse_encoder_decoders(plans: Sequence[StagePlan], to_run: Collection[str]) -> None:
    """Raises ConfigError if a stage after SFT would start from an encoder-decoder; only SFT supports those.

    A model from elsewhere in the store is refused when it is loaded."""
    bases = {plan.key: plan.config.base_model for plan in plans if plan.stage == "sft"}
    for plan in plans:
        source = plan.outside.get("sft") or bases.get(plan.parents.get("sft", ""))
        if plan.stage in to_run and source and reads_with_encoder(str(source)):
            raise ConfigError(
                f"{plan.stage} cannot start from '{source}', which is an encoder-decoder: only sft and evaluate-tasks "
                "support those; remove the sections after sft, run 'triptych sft --config RECIPE', or change the model"
            )


def reads_with_encoder(source: str) -> bool:
    """Whether config.json, in a directory or on the hub, describes an encoder-decoder; False if it cannot be read."""
    path = Path(source) / "config.json"
    try:
        if not Path(source).exists():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "config.json"))
        return bool(json.loads(path.read_text(encoding="utf-8")).get("is_encoder_decoder", False))
    except (OSError, ValueError, AttributeError):  # no such model or no network: the stage that loads it reports that
        return False
