"""How a model is read so that the numbers are those of its own forward pass on one text without padding.

Fast ways of reading rest on assumptions: logits are head(states), texts can share a row or be padded, keys and values
are the only state. Each is tried on the model's tiny twin (policy/reading/twin.py), with texts beyond its window and
answers that end early. Where one fails, the exact slower way is chosen; a model that has none is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from policy.errors import ModelError
from policy.precision import autocast
from policy.reading.trials import ANY, LONG, SHORT, Reading, try_readings
from policy.reading.twin import tiny_twin

logger = logging.getLogger("triptych.model")
SLOWER = {
    "own forward": "logits come from the model's own forward pass, since they are not its head times its states",
    "padded rows": "texts are not packed, since this architecture mixes texts that share a row",
    "equal rows": "only texts of equal length share a forward pass, since a longer neighbour changes what is read",
    "single rows": "texts are read one at a time, since neighbours change what is read",
    "equal cache": "only prompts of equal length are answered together, since padding changes what is read",
    "refused rows": "no text goes beyond the length its rope was trained with, since longer ones change later texts",
    "refused cache": "no answers go beyond the length that its rope was trained with, where all of a text changes",
    "none cache": "every sampled token reads its whole text again, since the cache does not repeat what was read",
}
FAST = Reading()
_of_model: WeakKeyDictionary[PreTrainedModel, tuple[Reading, Reading]] = WeakKeyDictionary()
_of_config: dict[str, tuple[Reading, Reading] | ModelError] = {}
_announced: set[tuple[str, str]] = set()


def reading_of(model: PreTrainedModel, longest: int = ANY) -> Reading:
    """How to read texts of at most `longest` tokens with this model. Tried once per architecture and settings.

    Raises ModelError if no way is exact."""
    if model not in _of_model:
        _of_model[model] = readings_of_config(model.config, model.device) or _tried_itself(model)
        announce(model.config.model_type, _of_model[model])
    within, beyond = _of_model[model]
    reach = reach_of(model.config)
    if longest > reach and beyond.rows == "refused":
        raise ModelError(
            f"{type(model).__name__} reads texts of more than {reach} tokens differently after it has read a longer "
            f"one; keep texts within {reach} tokens (max_length, and prompt plus sampling.max_new_tokens)."
        )
    return within if longest <= reach else beyond


def reads_packed(model: PreTrainedModel) -> bool:
    """Whether texts of any length can share a row."""
    return reading_of(model).rows == "packed"


def announce(model_type: str, readings: tuple[Reading, Reading]) -> None:
    """Log how models of this type are read, if it is in a slower way; once for each type."""
    lines = [line for reading in readings[::-1] for line in slower_ways(reading)]
    for line in dict.fromkeys(lines):
        if (model_type, line) not in _announced:
            _announced.add((model_type, line))
            logger.info("model type %s: %s", model_type, line)


def slower_ways(reading: Reading) -> list[str]:
    """What is read in a slower way than usual, and why, in words."""
    named = (reading.logits, f"{reading.rows} rows", f"{reading.cache} cache")
    return [SLOWER[name] for name in named if name in SLOWER]


def reach_of(config: PreTrainedConfig) -> int:
    """Tokens up to which texts stay within every window of the architecture and the length its rope was trained with;
    0 if its config names none."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    windows = ("sliding_window", "window_size", "attention_chunk_size", "keep_window_size")
    limits = [getattr(text, name, None) for name in windows]
    limits += [part.get("original_max_position_embeddings") for part in kinds]
    if any(part.get("rope_type") == "dynamic" for part in kinds):
        limits.append(text.max_position_embeddings)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=0)


def reading_for_record(config: PreTrainedConfig) -> dict[str, Any]:
    """The reading of long texts by field, and how short ones are read if that differs."""
    found = readings_of_config(config)
    if found is None:
        return {"tried_on": "the model itself"}
    within, beyond = found
    short = {"up_to": reach_of(config), "short_texts": within._asdict()} if within != beyond else {}
    return beyond._asdict() | short


def longest_answer(config: PreTrainedConfig) -> int:
    """Tokens of prompt and answer up to which this model can sample exactly; `ANY` if there is no such limit."""
    found = readings_of_config(config)
    return reach_of(config) if found is not None and "refused" in (found[1].rows, found[1].cache) else ANY


def check_can_sample(model: PreTrainedModel, longest: int) -> None:
    """Raise ModelError if answers cannot be sampled with texts of `longest` tokens (prompt and answer)."""
    if reading_of(model, longest).cache == "refused":
        raise ModelError(
            f"{type(model).__name__} reads all of a text in another way once it grows beyond {reach_of(model.config)} "
            f"tokens, and a prompt with its answer may have {longest}; lower sampling.max_new_tokens or give shorter "
            "prompts."
        )


def readings_of_config(config: PreTrainedConfig, device: torch.device | None = None) -> tuple[Reading, Reading] | None:
    """How to read a model with this config (within its reach, beyond it), tried on its twin. None if there is no twin.

    Raises ModelError if no way is exact."""
    device = torch.device("cpu") if device is None or device.type == "meta" else device
    key = architecture_key(config, device)
    if key not in _of_config:
        try:
            _of_config[key] = _tried(tiny_twin(config).to(device))
        except ModelError as error:
            _of_config[key] = error
        except Exception:  # a twin that cannot be built or run says nothing about the model
            return None
    found = _of_config[key]
    if isinstance(found, ModelError):
        raise ModelError(str(found))
    return found


def _tried_itself(model: PreTrainedModel) -> tuple[Reading, Reading]:
    """The same for a model that has no twin. Its window, if it has one, is too long for a trial, so longer texts are
    read in the way that needs none."""
    within, beyond = _tried(model)
    return within, beyond._replace(rows="equal", cache="none", prefix=False) if reach_of(model.config) else beyond


def _tried(model: PreTrainedModel) -> tuple[Reading, Reading]:
    """(for short texts, for long ones), tried on this model."""
    was_training = model.training
    try:
        # Autocast's rounding would hide a difference.
        with torch.no_grad(), autocast(model.device, enabled=False):
            beyond = try_readings(model.eval(), *LONG)
            within = beyond if beyond._replace(logits="head") == FAST else try_readings(model, *SHORT)
            if "refused" in (within.rows, within.cache):
                raise ModelError(
                    f"{type(model).__name__} reads the start of a text in another way once the text goes on, so an "
                    "answer's tokens have no fixed probability; use another architecture (docs/models.md)."
                )
    finally:
        model.train(was_training)
    return within, beyond


def architecture_key(config: PreTrainedConfig, device: torch.device) -> str:
    """A digest of all in a config that may change how its model is read."""
    settings = config.to_dict()
    apart = {"architectures", "id2label", "label2id", "reward_gain", "reward_bias", "transformers_version", "dtype"}
    kept = {name: value for name, value in settings.items() if name not in apart and not name.endswith("_token_id")}
    where = f"{device.type} {config._attn_implementation}"
    return hashlib.sha256(f"{where} {json.dumps(kept, sort_keys=True, default=str)}".encode()).hexdigest()
