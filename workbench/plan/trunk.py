"""What PPO's models share and train with a frozen trunk (`ppo.trainable_layers`), found from configs alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from policy.adapters import ALL_LINEAR, check_targets
from policy.reading.body import body_of
from policy.reading.freezing import names_above
from policy.reading.trunk import layers_of
from policy.reading.twin import tiny_twin
from reward.classes import head_of_scalar
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig

WHOLE = RewardModelConfig()  # a reward model all of whose weights were trained
NOTHING = -1  # of `alike`: not even the embedding


@dataclass(frozen=True)
class TrunkShape:
    """Layers that are frozen and what else is the same in several models."""

    depth: int
    """Frozen layers of policy and value model."""
    alike: int
    """Lowest layers of the reward model that are the trunk's own; NOTHING: its embedding is another, too."""
    value_is_reward: bool
    """Whether the value model starts from the reward model's weights; otherwise from the SFT model's."""
    kept: tuple[int, ...]
    """Layers whose input is kept for every token of an iteration's texts."""


def shape_of_trunk(policy: PreTrainedModel, ppo: PpoConfig, reward: RewardModelConfig | None) -> TrunkShape | None:
    """The trunk of this policy, on any device, and of a reward model with these settings; None without a trunk. That
    the model can be parted there is the gate's to check (pipeline/gate/trunk.py)."""
    if ppo.trainable_layers is None:
        return None
    depth = len(layers_of(policy)[1]) - ppo.trainable_layers
    alike = NOTHING if reward is None else layers_alike(reward, ppo, policy, depth)
    whole = reward is not None and reward.frozen_layers is None
    return TrunkShape(depth, alike, whole and alike == depth, tuple(sorted({depth, alike} - {NOTHING, 0})))


def layers_alike(reward: RewardModelConfig, ppo: PpoConfig, policy: PreTrainedModel, depth: int) -> int:
    """Number of the reward model's lowest layers that its training left as they are in the trunk, or NOTHING."""
    if reward.sft != ppo.sft or reward.ensemble > 1:
        return NOTHING
    if reward.frozen_layers is not None:
        return min(reward.frozen_layers, depth)
    if reward.trainable_layers is not None:
        return min(len(layers_of(policy)[1]) - reward.trainable_layers, depth)
    if reward.lora is None:
        return NOTHING
    if reward.lora.targets.strip() == ALL_LINEAR:
        return 0
    adapted = {name for names in check_targets(policy, reward.lora.targets).values() for name in names}
    modules = {id(policy.get_submodule(name)) for name in adapted}
    layers = layers_of(policy)[1]
    return min([i for i in range(depth) if any(id(part) in modules for part in layers[i].modules())], default=depth)


def names_from(model: PreTrainedModel, first: int) -> list[str]:
    """As policy/reading/freezing.py:names_above, for a model without values too: what acts above the layers is found
    on the model's twin."""
    body = body_of(model)
    prefix = next(name for name, module in model.named_modules() if module is body)
    twin = tiny_twin(model.config)
    inner = next(name for name, module in twin.named_modules() if module is body_of(twin))
    layers = layers_of(twin)
    outside = {name.removeprefix(f"{inner}.") for name in names_above(twin, len(layers[1]) - 1)}

    def acts_above(own: str) -> bool:
        if own.startswith(f"{layers[0]}."):
            return int(own.removeprefix(f"{layers[0]}.").split(".")[0]) >= first
        return own in outside

    return [f"{prefix}.{own}" for own, _ in body.named_parameters() if acts_above(own)]


def freeze(model: PreTrainedModel, first: int) -> list[str]:
    """Let only the layers from `first` on, what acts after them, and a scalar head train; returns the full names of
    these parameters, the head's left out."""
    names = names_from(model, first)
    above = set(names)
    head = {id(weight) for weight in _head(model)}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in above or id(weight) in head)
    return names


def own_bytes(model: PreTrainedModel, alike: int) -> int:
    """Bytes of a scalar model's own weights if its lowest `alike` layers, and what is below them, are the trunk's."""
    if alike == NOTHING:
        return sum(weight.nbytes for weight in model.parameters())
    above = [model.get_parameter(name) for name in names_from(model, alike)]
    return sum(weight.nbytes for weight in [*above, *_head(model)])


def _head(model: PreTrainedModel) -> list[nn.Parameter]:
    head = head_of_scalar(model)
    return [] if head is None else list(head.parameters())
