"""Settings that several stages share, and the check of their ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

from data_schema.errors import printable
from data_schema.sources import Source
from stages.errors import ConfigError

INFINITY = float("inf")
COUNT = (1, INFINITY)
POSITIVE = (1e-12, INFINITY)
NOT_NEGATIVE = (0, INFINITY)
SHARE = (0, 1)
LONGEST_NAME = 80  # characters; W&B's run ids, which contain the name, have at most 128
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")  # checkpoint_store/names.py: one part
Device = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
JudgePath = str  # "module:function" taking (meta, response, finished) and returning {"gold": ..., other parts ...}


def check_bounds(config: Any, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError for a number outside its bounds (inclusive; POSITIVE excludes 0), or one that is not finite.
    None means off and passes."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            least = "greater than 0" if low == POSITIVE[0] else f"at least {low:.12g}"
            span = least if high == INFINITY else f"between {low:.12g} and {high:.12g}"
            raise ConfigError(f"{config.section}.{name} is {value:.12g}; it must be {span}")


def check_name(setting: str, value: str) -> None:
    """Raise ConfigError for a recipe's, project's or group's name that could not be part of a checkpoint's name."""
    if not NAME.fullmatch(value):
        raise ConfigError(
            f"{setting} is '{printable(value[:LONGEST_NAME])}'; it must be at most {LONGEST_NAME} letters (a to z), "
            "digits, '.', '_' or '-', and begin with a letter or digit"
        )


def source_lists(config: Any) -> dict[str, list[Source]]:
    """Setting name -> its sources, for each setting of a stage's config that lists any; {} if the config is None."""
    return {
        name: value
        for name, value in (vars(config) if config else {}).items()
        if isinstance(value, list) and value and isinstance(value[0], Source)
    }


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of all weights (Hu et al. 2021); published checkpoints have them merged."""

    section = "lora"
    rank: int = 16
    """Rank of each adapter's weight update."""
    alpha: float = 32.0
    """Scale: each update is multiplied by alpha / rank."""
    targets: str = "all-linear"
    """Layers that get an adapter: "all-linear", or names of linear layers such as q_proj,v_proj, or regular expressions
    of full names, separated by commas."""

    def __post_init__(self) -> None:
        check_bounds(self, rank=COUNT, alpha=POSITIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and decay of the learning rate; defaults from InstructGPT where given (C.1-C.4)."""

    section = "optimizer"
    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Decay after warm-up. cosine: to final_fraction of the peak; linear: to zero; constant: none."""
    final_fraction: float = 0.1
    """Learning rate at the end of a cosine schedule, as a fraction of the peak."""
    warmup_steps: int = 0
    """Steps of linear warm-up, starting at a tenth of the peak; 0: no warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: float = 1e-8
    """Adam's epsilon, added to the root of the second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; 0: none."""
    max_grad_norm: float = 1.0
    """Clip the gradient's global norm to this value."""

    def __post_init__(self) -> None:
        check_bounds(self, learning_rate=POSITIVE, final_fraction=SHARE, warmup_steps=NOT_NEGATIVE, eps=POSITIVE)
        check_bounds(self, weight_decay=NOT_NEGATIVE, max_grad_norm=POSITIVE)


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled: from the full softmax, without top-k or top-p, as PPO's maths requires."""

    section = "sampling"
    max_new_tokens: int = 64
    """Cut off answers after this many tokens."""
    temperature: float = 1.0
    """Divide logits by this before sampling."""
    batch_size: int = 64
    """Answers sampled or scored in one forward pass. Affects memory and speed."""
    engine: str | None = None
    """Sampler to use, as "module:function" (policy/sampling/engines.py:RolloutEngine); null: the built-in loop."""

    def __post_init__(self) -> None:
        check_bounds(self, max_new_tokens=COUNT, temperature=POSITIVE, batch_size=COUNT)


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases logging. Metrics are always written to metrics.jsonl in a stage's run directory as well."""

    section = "tracking"
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B mode; auto: online if you are logged in, else offline."""
    project: str = "triptych"
    """W&B project name."""
    group: str | None = None
    """W&B group of all the recipe's runs; null: the recipe's name."""

    def __post_init__(self) -> None:
        check_name("tracking.project", self.project)
        if self.group is not None:
            check_name("tracking.group", self.group)


def plain(config: Any) -> Any:
    """Return a config as JSON-ready values."""
    if is_dataclass(config) and not isinstance(config, type):
        return {name: plain(value) for name, value in asdict(config).items()}
    if isinstance(config, Mapping):
        return {name: plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)  # JSON has no infinity; a recipe reads the text as the number
    return config
