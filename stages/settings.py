"""Settings that several stages share, and the check of their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

from data_schema.sources import Source
from stages.errors import ConfigError

INFINITY = float("inf")
COUNT = (1, INFINITY)
POSITIVE = (1e-12, INFINITY)
NOT_NEGATIVE = (0, INFINITY)
SHARE = (0, 1)
Device = Literal["auto", "cpu", "cuda"]
JudgePath = str  # "module:function" taking (meta, response, finished) and returning {"gold": ..., other parts ...}


def check_bounds(config: Any, **bounds: tuple[float, float]) -> None:
    """Refuse numbers outside their closed bounds; None passes (a setting that is off)."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            span = f"at least {low:g}" if high == INFINITY else f"between {low:g} and {high:g}"
            raise ConfigError(f"{config.section}.{name} is {value:g}; it must be {span}")


def source_lists(config: Any) -> dict[str, list[Source]]:
    """Setting -> its sources, for every setting of a stage's config that names some; {} for None."""
    return {
        name: value
        for name, value in (vars(config) if config else {}).items()
        if isinstance(value, list) and value and isinstance(value[0], Source)
    }


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of training every weight (Hu et al. 2021). What is published has them merged."""

    section = "lora"
    rank: int = 16
    """Rank of each update."""
    alpha: float = 32.0
    """Scale: an update counts alpha / rank."""
    targets: str = "all-linear"
    """Layers that get one: "all-linear", or a comma-separated list of module names such as q_proj,v_proj."""

    def __post_init__(self) -> None:
        check_bounds(self, rank=COUNT, alpha=POSITIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a decay; defaults as InstructGPT where it says (C.1-C.4)."""

    section = "optimizer"
    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """cosine: to final_fraction of the peak; linear: to zero."""
    final_fraction: float = 0.1
    """Where cosine ends, as a fraction of the peak."""
    warmup_steps: int = 0
    """Linear warm-up from a tenth of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, learning_rate=POSITIVE, final_fraction=SHARE, warmup_steps=NOT_NEGATIVE, eps=POSITIVE)
        check_bounds(self, weight_decay=NOT_NEGATIVE, max_grad_norm=POSITIVE)


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn: plain sampling, no top-k, no top-p, as PPO's maths needs."""

    section = "sampling"
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch_size: int = 64
    """Responses drawn at once."""
    engine: str | None = None
    """What draws them, "module:function" as in policy/sampling/engines.py:RolloutEngine; null: our own loop."""

    def __post_init__(self) -> None:
        check_bounds(self, max_new_tokens=COUNT, temperature=POSITIVE, batch_size=COUNT)


@dataclass(frozen=True)
class TrackingConfig:
    """Where curves are looked at. The record itself is always metrics.jsonl in a stage's run directory."""

    section = "tracking"
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an account, else offline."""
    project: str = "triptych"
    group: str | None = None
    """W&B's group of the stages' runs; null: the recipe's name."""


def plain(config: Any) -> Any:
    """A config as JSON-ready values."""
    if is_dataclass(config) and not isinstance(config, type):
        return {name: plain(value) for name, value in asdict(config).items()}
    if isinstance(config, Mapping):
        return {name: plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return config
