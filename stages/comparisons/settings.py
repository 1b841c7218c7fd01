"""The settings of the `comparisons` step."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.settings import NOT_NEGATIVE, Device, JudgePath, SamplingConfig, check_bounds


@dataclass(frozen=True)
class ComparisonsConfig:
    """Stage 2a: sample K answers of the SFT model to each prompt and rank them with a labeler function.

    If you have human comparisons, leave this section out and set `reward_model.data`."""

    section = "comparisons"
    prompts: list[Source]
    """Prompts to answer and rank."""
    labeler: JudgePath
    """Labeler, as "module:function"; the answers are ranked by the "gold" score it returns, highest first."""
    sft: str | None = None
    """Model that answers: a name in the store, or a directory; null: this recipe's SFT model."""
    answers_per_prompt: int = 4
    """K, the answers sampled to each prompt."""
    label_noise: float = 0.0
    """Probability that two groups of answers adjacent in rank are swapped, to imitate human errors; 0: no noise."""
    tie_margin: float = 0.0
    """Answers whose gold scores differ by less than this share a rank; 0: only equal scores do."""
    held_out_prompts: int = 0
    """Number of prompts, taken from the end, whose comparisons are held out; their labels have no noise."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the answers are sampled."""
    device: Device = "auto"
    """Device to run on; auto: the GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_bounds(self, answers_per_prompt=(2, 9), label_noise=(0, 0.5), tie_margin=NOT_NEGATIVE)
        check_bounds(self, held_out_prompts=NOT_NEGATIVE)
