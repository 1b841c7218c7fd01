"""Trains the further members of a reward model's ensemble on the first one's backbone, each with its own data order.

Their adapters and heads are in the same model as the first member's, so that the backbone is in memory only once.
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

SEED_STEP = 100_003  # between members, so that runs with neighbouring seeds share no member
FIRST = "default"  # peft's name for the first adapter
CARD = """
## Ensemble

This checkpoint contains {n} reward models with one backbone. `model.safetensors` is the first; everything above is
about it. Each of the others is a PEFT adapter on top of the first, with its own head, in `ensemble/member_1` and so on;
`PeftModel.from_pretrained(model, "ensemble/member_1")` loads one. `ensemble/ensemble.json` lists their gains and biases
in that order. triptych's PPO scores with the mean of all members, their minimum, or the mean minus a penalty for their
disagreement. `triptych score` and `triptych judge` use the mean. After the code above, these lines compute it:

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
    """Seed of a member's head, adapter and order of data; member 0 has the recipe's seed."""
    return seed + SEED_STEP * member


def train_others(model: Any, fit: Callable[[int], None], n: int, seed: int) -> list[Member]:
    """Train all members but the first; returns them relative to the first, their scale not yet set. `model` is peft's,
    with the first member trained and active, before and after. `fit(member)` trains the active adapter."""
    names = [FIRST, *(f"member_{member}" for member in range(1, n))]  # not "1": peft would read it as a layer's number
    for member, name in enumerate(names[1:], start=1):
        own = member_seed(seed, member)
        torch.manual_seed(own)
        with warnings.catch_warnings():  # as in policy.adapters.add_lora
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
    """An adapter of peft's model with its head, as a change to the backbone."""
    from peft import get_peft_model_state_dict

    settings = model.peft_config[adapter]
    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return member_state(state, settings.lora_alpha / settings.r, model.get_base_model(), RewardNormalisation())


def set_scales(
    model: PreTrainedModel, members: Sequence[Member], normalise: Callable[[], RewardNormalisation]
) -> list[Member]:
    """Set every member's gain and bias; `normalise` finds them for the member that the model currently acts as."""
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
    """Pair accuracy of each member, their mean and their minimum on held-out rankings, and their disagreement."""
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
    """Write the members' files into the checkpoint and describe them in its card. `lora`: peft's settings."""
    write_members(directory, model, members, adapter_settings(lora))
    with (directory / "README.md").open("a", encoding="utf-8") as card:
        card.write(CARD.format(n=1 + len(members)))
