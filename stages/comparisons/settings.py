"""The settings of the `comparisons` step."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_schema.sources import Source
from stages.settings import NOT_NEGATIVE, Device, JudgePath, SamplingConfig, check_bounds


@dataclass(frozen=True)
class ComparisonsConfig:
    """Step 2a, collecting comparisons: K answers of the SFT model to each prompt, ranked by a labeler given as code.

    With people's comparisons at hand a recipe leaves this out and gives `reward_model.data`.
    """

    section = "comparisons"
    prompts: list[Source]
    labeler: JudgePath
    """"module:function"; its "gold" ranks the answers."""
    answers_per_prompt: int = 4
    label_noise: float = 0.0
    """Chance that the preference between two neighbours in rank is turned round, as people's are."""
    tie_margin: float = 0.0
    """Gold scores closer than this are a tie."""
    held_out_prompts: int = 0
    """The last so many prompts become the held-out comparisons; their labels have no noise."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_bounds(self, answers_per_prompt=(2, 9), label_noise=(0, 0.5), tie_margin=NOT_NEGATIVE)
        check_bounds(self, held_out_prompts=NOT_NEGATIVE)
