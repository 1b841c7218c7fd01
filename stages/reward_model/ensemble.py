"""Further members of a reward model's ensemble: trained over the first one's backbone, each in its own order of data.

They are adapters and heads beside the first member's in the same model, so that the backbone is in memory once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward.adapter import adapter_settings
from reward.ensemble import Member, acting_as, combine, member_state, relative_to, write_members
from reward.normalisation import RewardNormalisation
from reward.ranking_loss import pair_accuracy, pair_index
from reward.scalar_model import draw_head, scalar_head
from reward.scoring import score_responses

if TYPE_CHECKING:
    from stages.reward_model.trainer import Ranking

SEED_STEP = 100_003  # between members, so that runs of neighbouring seeds share none
FIRST = "default"  # peft's name for the first adapter
CARD = """
## Ensemble

This checkpoint holds {n} reward models over one backbone. `model.safetensors`, and with it all that is said above, is
the first. Each of the others is a PEFT adapter on top of it, with a head of its own, in `ensemble/member_1` and so on:
`PeftModel.from_pretrained(model, "ensemble/member_1")` opens one. Their gain and bias stand in that order in
`ensemble/ensemble.json`. triptych's PPO scores with the mean of all members, their minimum, or the mean less their
disagreement; `triptych score` and `triptych judge` with the mean, which is, after the lines above:

```python
import json
from pathlib import Path

from peft import PeftModel

scales = json.loads(Path(directory, "ensemble", "ensemble.json").read_text())["members"]
members = [
    PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32),
        f"{{directory}}/ensemble/member_{{number}}",
    ).eval()
    for number in range(1, {n})
]


def mean_score(messages):
    others = [
        scale["gain"] * logit(messages, member) + scale["bias"] for scale, member in zip(scales, members, strict=True)
    ]
    return sum([score(messages), *others]) / {n}
```
"""


def member_seed(seed: int, member: int) -> int:
    """Of a member's head, adapter and order of data; the first member's is the recipe's own."""
    return seed + SEED_STEP * member


def train_others(model: Any, fit: Callable[[int], None], n: int, seed: int) -> list[Member]:
    """The members but the first as changes of it, their scale not yet set. `model` is peft's with the first member
    trained, and is left so; `fit(member)` trains what is active in it."""
    names = [FIRST, *(f"member_{member}" for member in range(1, n))]  # "1" peft would take for a layer's number
    for member, name in enumerate(names[1:], start=1):
        own = member_seed(seed, member)
        torch.manual_seed(own)
        with warnings.catch_warnings():  # as in policy.language_model.add_lora
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            model.add_adapter(name, copy.deepcopy(model.peft_config[FIRST]))
        model.set_adapter(name)
        head: Any = scalar_head(model.get_base_model())
        draw_head(head.modules_to_save[name], own)
        fit(member)
    model.set_adapter(FIRST)
    first = trained_member(model, FIRST)
    return [relative_to(trained_member(model, name), first) for name in names[1:]]


def trained_member(model: Any, adapter: str) -> Member:
    """One adapter of peft's model with its head, as a change of the backbone."""
    from peft import get_peft_model_state_dict

    settings = model.peft_config[adapter]
    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return member_state(state, settings.lora_alpha / settings.r, model.get_base_model(), RewardNormalisation())


def set_scales(
    model: PreTrainedModel, members: Sequence[Member], normalise: Callable[[], RewardNormalisation]
) -> list[Member]:
    """Every member on the scale that the first has: `normalise` finds it for what the model now computes."""
    found = []
    for member in members:
        with acting_as(model, member):
            found.append(member._replace(normalisation=normalise()))
    return found


def judge_members(
    model: PreTrainedModel,
    first: RewardNormalisation,
    members: Sequence[Member],
    rankings: Sequence[Ranking],
    pad_id: int,
) -> dict[str, Any]:
    """Pair accuracy on held-out rankings of each member and of their mean and minimum, and how far they disagree."""
    if not rankings:
        return {"members": 1 + len(members)}
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.responses]
    responses = [response for ranking in rankings for response in ranking.responses]
    pairs = pair_index([ranking.ranks for ranking in rankings])

    def raw() -> Tensor:
        return score_responses(model, prompts, responses, pad_id, normalised=False)

    scores = [first(raw())]
    for member in members:
        with acting_as(model, member):
            scores.append(member.normalisation(raw()))
    table = torch.stack(scores)
    mean, minimum = combine(table, "mean"), combine(table, "minimum")
    return {
        "members": len(table),
        "pair_accuracy_of_members": [pair_accuracy(row, pairs).item() for row in table],
        "pair_accuracy_of_mean": pair_accuracy(mean.scores, pairs).item(),
        "pair_accuracy_of_minimum": pair_accuracy(minimum.scores, pairs).item(),
        "disagreement": mean.watched["disagreement"].mean().item(),
    }


def publish_members(directory: Path, model: PreTrainedModel, members: Sequence[Member], lora: Any) -> None:
    """The members' files beside the first one's, and what they are in its card. `lora` are peft's settings."""
    write_members(directory, model, members, adapter_settings(lora))
    with (directory / "README.md").open("a", encoding="utf-8") as card:
        card.write(CARD.format(n=1 + len(members)))
