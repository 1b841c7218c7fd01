"""PPO's four models (policy, reference, reward and value), with as few copies of the weights as possible."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy.adapters import add_lora, describe_reach, reach
from policy.errors import ModelError
from policy.language_model import LanguageModel, choose_device, load_language_model, load_tokenizer, save_checkpoint
from policy.memory.offload import WeightsOnDisk, weights_on_disk
from policy.memory.shared_weights import copy_trained, share_weights
from policy.precision import choose_precision, compute_in
from policy.reading.freezing import freeze_below, names_above
from policy.reading.trunk import layers_of, read_above
from policy.sampling.rollout import Rollout
from reward.adapter import adapted_scalar_model, scalar_model_over, why_no_adapter
from reward.invariance import check_scores_are_independent
from reward.normalisation import RewardNormalisation
from reward.scalar_model import draw_head, from_language_model, load_scalar_model, scalar_head, store_normalisation
from stages.ppo.out_of_memory import RowsAtOnce
from stages.ppo.settings import PpoConfig
from stages.ppo.trunk import Trunk
from stages.settings import LoraConfig

logger = logging.getLogger("triptych.ppo")


@dataclass(frozen=True)
class Roles:
    """The models. Whole models: four copies of the weights; reference and reward model may be on disk while unused.
    With adapters: two copies (the reference is the policy with adapters off, the reward model is the value model with
    adapters off), or one copy, around which each role has its own modules. With a trunk: one copy of the lower layers,
    and of the upper ones what the two lines above say."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    value: PreTrainedModel
    reward: PreTrainedModel | None  # None: no reward model of this recipe reads the policy's ids
    policy_adapters: Any = None  # peft's wrapper around `policy`, or None
    value_adapters: Any = None
    offloaded: Mapping[str, WeightsOnDisk] = field(default_factory=dict)  # by role
    trunk: Trunk | None = None  # frozen layers that all roles share, with `trainable_layers`

    def as_reference(self) -> AbstractContextManager[Any]:
        """Context in which `reference` computes what the SFT model does."""
        if self.reference is self.policy:
            return self.policy_adapters.disable_adapter()
        return self.offloaded["reference"].loaded() if "reference" in self.offloaded else nullcontext()

    def as_reward(self) -> AbstractContextManager[Any]:
        """Context in which `reward` computes what the reward model does."""
        if self.reward is self.value:
            return self.value_adapters.disable_adapter()
        return self.offloaded["reward"].loaded() if "reward" in self.offloaded else nullcontext()

    def read_trunk(self, rollout: Rollout, config: PpoConfig, rows: RowsAtOnce, directory: Path) -> Rollout:
        """The rollout with the states that the trunk's models go on from; unchanged without a trunk."""
        return rollout if self.trunk is None else self.trunk.read(rollout, config, rows, directory)

    def compute_in(self, precision: str) -> None:
        """Set the type of all models' forward passes: "float32" or "bfloat16"."""
        for model in (self.policy, self.reference, self.value, self.reward):
            if model is not None:
                compute_in(model, precision)

    def adapters_reach(self) -> dict[str, Any]:
        """How much of the policy its adapters reach, also as a line of the log; {} without adapters."""
        if self.policy_adapters is None:
            return {}
        found = reach(self.policy_adapters)
        logger.info(describe_reach("ppo", found))
        return found

    def save_policy(self, directory: Path) -> None:
        """Save the policy as a whole model, with adapters merged. The roles cannot be trained any further."""
        model = self.policy_adapters.merge_and_unload() if self.policy_adapters else self.policy
        save_checkpoint(model, self.tokenizer, directory)


def decided_here(config: PpoConfig, sft: Path) -> tuple[PpoConfig, torch.device]:
    """-> (config with `precision: auto` resolved for this machine, device). Records keep this config for replay."""
    device = choose_device(config.device)
    return replace(config, precision=choose_precision(config.precision, device, sft)), device


def load_roles(
    sft: Path,
    reward_model: Path | None,
    device: torch.device,
    lora: LoraConfig | None,
    seed: int = 0,
    shared_backbone: bool = False,
    offload_frozen: bool = False,
    trainable_layers: int | None = None,
) -> Roles:
    """Load policy and reference from the SFT model, and reward and value model from the reward model (InstructGPT
    C.4). Without a reward model the value model is the SFT model with a head drawn from the seed.

    With `lora` there are two copies of the weights, or one if `shared_backbone` is set and possible. Without it,
    `offload_frozen` keeps reference and reward model on disk while they are unused. With `trainable_layers` the lower
    layers of all models are one copy. All models are in evaluation mode: with dropout, the first ratio would not be 1.
    """
    language_model = load_language_model(sft, device)
    policy, tokenizer = language_model
    if reward_model is not None:
        check_same_text(tokenizer, load_tokenizer(reward_model), sft, reward_model)
    if trainable_layers is not None:
        return ready(roles_over_trunk(language_model, reward_model, device, lora, trainable_layers))
    if lora is not None and shared_backbone and can_share_backbone(sft, reward_model):
        return ready(roles_over_one_backbone(language_model, reward_model, lora, seed))
    value = from_language_model(sft, device, seed) if reward_model is None else load_scalar_model(reward_model, device)
    if lora is None:
        reference = load_language_model(sft, device).model
        reward = None if reward_model is None else load_scalar_model(reward_model, device)
        roles = ready(Roles(tokenizer, policy, reference, value, reward))
        return replace(roles, offloaded=frozen_on_disk(roles, sft, reward_model)) if offload_frozen else roles
    policy_adapters = add_lora(policy, lora.rank, lora.alpha, lora.targets, "CAUSAL_LM")
    value_adapters = add_lora(value, lora.rank, lora.alpha, lora.targets, "SEQ_CLS")
    policy, value = policy_adapters.get_base_model(), value_adapters.get_base_model()
    reward = None if reward_model is None else value
    return ready(Roles(tokenizer, policy, policy, value, reward, policy_adapters, value_adapters))


def roles_over_trunk(
    language_model: LanguageModel,
    reward_model: Path | None,
    device: torch.device,
    lora: LoraConfig | None,
    trainable_layers: int,
) -> Roles:
    """Policy and value model train their upper `trainable_layers` layers, or adapters in them, above the SFT model's
    other layers, which are in memory once.

    The value model starts as the reward model if that is a model over the same trunk, and otherwise as the SFT model
    with a head of zeros."""
    policy, tokenizer = language_model
    depth = freeze_below(policy, trainable_layers)
    trunk = Trunk(policy, depth)
    value = reward = None
    if reward_model is not None:
        reward = load_scalar_model(reward_model, device).requires_grad_(False)
        if trunk.share(reward, reward_model) == depth and len(layers_of(reward)[1]) == len(layers_of(policy)[1]):
            value = reward
    if value is None:
        logger.info("ppo: the value model starts as the SFT model with values of 0: no reward model has its trunk")
        value = values_of_zero(policy)
    if lora is not None:
        adapt = (lora.rank, lora.alpha, lora.targets)
        value_adapters = add_lora(value, *adapt, "SEQ_CLS", within=names_above(value, depth))
        policy_adapters = add_lora(policy, *adapt, "CAUSAL_LM", within=names_above(policy, depth))
        value = value_adapters.get_base_model()
        roles = Roles(tokenizer, policy, policy, value, reward, policy_adapters, value_adapters, trunk=trunk)
    else:
        reference = copy_trained(policy).requires_grad_(False)
        freeze_below(value, trainable_layers)
        scalar_head(value).requires_grad_(True)
        value = copy_trained(value)
        if reward is not None:
            reward.requires_grad_(False)
        roles = Roles(tokenizer, policy, reference, value, reward, trunk=trunk)
    for model in (roles.policy, roles.reference, roles.value):
        read_above(model, depth)
    return roles


def values_of_zero(policy: PreTrainedModel) -> PreTrainedModel:
    """A scalar model over the policy's body whose values are all 0."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    value = scalar_model_over(policy, config)
    store_normalisation(value, RewardNormalisation())
    return value


def can_share_backbone(sft: Path, reward_model: Path | None) -> bool:
    """Whether the reward model is an adapter over this SFT model (or absent). If not, log the reason and the effect."""
    why = None if reward_model is None else why_no_adapter(reward_model, sft)
    if why is not None:
        logger.warning(
            "ppo: two copies of the weights, not one: the reward model '%s' is not an adapter over '%s': %s; train it "
            "with reward_model.lora from this SFT model.",
            reward_model,
            sft,
            why,
        )
    return why is None


def roles_over_one_backbone(
    language_model: LanguageModel, reward_model: Path | None, lora: LoraConfig, seed: int
) -> Roles:
    """All roles over the SFT model's weights: the reference without adapters, the policy with new ones, reward and
    value model with the reward model's adapter and head, which the value model trains further.

    Without a reward model the value model gets new adapters and a head drawn from the seed."""
    reference, tokenizer = language_model
    reward: PreTrainedModel | None = None
    if reward_model is None:
        value = values_of_zero(reference)
        draw_head(scalar_head(value), seed)
        value_adapters = add_lora(value, lora.rank, lora.alpha, lora.targets, "SEQ_CLS")
    else:
        reward = adapted_scalar_model(reward_model, reference, trainable=False).get_base_model()
        value_adapters = adapted_scalar_model(reward_model, reference, trainable=True)
    policy = share_weights(reference)
    policy_adapters = add_lora(policy, lora.rank, lora.alpha, lora.targets, "CAUSAL_LM")
    return Roles(tokenizer, policy, reference, value_adapters.get_base_model(), reward, policy_adapters, value_adapters)


def ready(roles: Roles) -> Roles:
    """Put the roles in evaluation mode and check the reward model's scores; returns the roles."""
    for model in (roles.policy, roles.reference, roles.value):
        model.eval()
    if roles.reward is not None:
        roles.reward.eval()
        with roles.as_reward():
            check_scores_are_independent(roles.reward, roles.tokenizer.pad_token_id)
    return roles


def frozen_on_disk(roles: Roles, sft: Path, reward_model: Path | None) -> dict[str, WeightsOnDisk]:
    """Role -> weights that can stay on disk while the role is unused."""
    frozen = {"reference": (roles.reference, sft), "reward": (roles.reward, reward_model)}
    found = {role: weights_on_disk(model, place) for role, (model, place) in frozen.items() if model and place}
    return {role: weights for role, weights in found.items() if weights is not None}


def check_same_text(
    policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, policy_source: Path, reward_source: Path
) -> None:
    """Raise ModelError unless both tokenizers encode a conversation as the same ids."""
    what = text_difference(policy, reward)
    if what is not None:
        raise ModelError(
            f"the {what} of the reward model '{reward_source}' is not that of the policy '{policy_source}', so it "
            "would score text unlike its training data; train the reward model from this SFT model, or set "
            "text_crosses_over for it in ppo.rewards."
        )


def text_difference(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> str | None:
    """What differs between two tokenizers so that they encode a conversation differently; None if nothing does."""
    same = {
        "vocabulary": policy.get_vocab() == reward.get_vocab(),
        "chat template": policy.chat_template == reward.chat_template,
        "EOS token": policy.eos_token_id == reward.eos_token_id,
    }
    return next((what for what, is_same in same.items() if not is_same), None)
