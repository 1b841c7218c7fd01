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
from policy.memory.shared_weights import share_weights
from policy.precision import choose_precision, compute_in
from reward.adapter import adapted_scalar_model, scalar_model_over, why_no_adapter
from reward.invariance import check_scores_are_independent
from reward.normalisation import RewardNormalisation
from reward.scalar_model import draw_head, from_language_model, load_scalar_model, scalar_head, store_normalisation
from stages.ppo.settings import PpoConfig
from stages.settings import LoraConfig

logger = logging.getLogger("triptych.ppo")


@dataclass(frozen=True)
class Roles:
    """The models. Whole models: four copies of the weights; reference and reward model may be on disk while unused.
    With adapters: two copies (the reference is the policy with adapters off, the reward model is the value model with
    adapters off), or one copy, around which each role has its own modules."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    value: PreTrainedModel
    reward: PreTrainedModel | None  # None: no reward model of this recipe reads the policy's ids
    policy_adapters: Any = None  # peft's wrapper around `policy`, or None
    value_adapters: Any = None
    offloaded: Mapping[str, WeightsOnDisk] = field(default_factory=dict)  # by role

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
) -> Roles:
    """Load policy and reference from the SFT model, and reward and value model from the reward model (InstructGPT
    C.4). Without a reward model the value model is the SFT model with a head drawn from the seed.

    With `lora` there are two copies of the weights, or one if `shared_backbone` is set and possible. Without it,
    `offload_frozen` keeps reference and reward model on disk while they are unused. All models are in evaluation mode:
    with dropout, the first ratio would not be 1."""
    language_model = load_language_model(sft, device)
    policy, tokenizer = language_model
    if reward_model is not None:
        check_same_text(tokenizer, load_tokenizer(reward_model), sft, reward_model)
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
        config = copy.deepcopy(reference.config)
        config.num_labels = 1
        value = scalar_model_over(reference, config)
        draw_head(scalar_head(value), seed)
        store_normalisation(value, RewardNormalisation())
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
