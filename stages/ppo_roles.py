"""PPO's four roles (policy, reference, reward, value) on as few copies of the weights as training allows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy.errors import ModelError
from policy.language_model import add_lora, load_language_model, load_tokenizer, save_checkpoint
from reward.invariance import check_scores_are_independent
from reward.scalar_model import from_language_model, load_scalar_model
from stages.settings import LoraConfig


@dataclass(frozen=True)
class Roles:
    """Whole models: four copies. With adapters: two, since the reference is the policy and the reward model is the
    value model, each with its adapters off."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    value: PreTrainedModel
    reward: PreTrainedModel | None  # None: no reward model of this pipeline reads the policy's ids
    policy_adapters: Any = None  # peft's wrapper around `policy`, or None
    value_adapters: Any = None

    def as_reference(self) -> AbstractContextManager[Any]:
        """Within it, `reference` computes what the SFT model would."""
        return self.policy_adapters.disable_adapter() if self.policy_adapters else nullcontext()

    def as_reward(self) -> AbstractContextManager[Any]:
        """Within it, `reward` computes what the reward model would."""
        return self.value_adapters.disable_adapter() if self.value_adapters else nullcontext()

    def save_policy(self, directory: Path) -> None:
        """The policy as a whole model, its adapters merged. The roles cannot be trained on afterwards."""
        model = self.policy_adapters.merge_and_unload() if self.policy_adapters else self.policy
        save_checkpoint(model, self.tokenizer, directory)


def load_roles(
    sft: Path, reward_model: Path | None, device: torch.device, lora: LoraConfig | None, seed: int = 0
) -> Roles:
    """Policy and reference from the SFT model; reward, and the value model as its copy, from the reward model
    (InstructGPT C.4). Without a reward model the value model is the SFT model with a head drawn from the seed.

    All in evaluation mode: with dropout on, the first ratio would not be 1.
    """
    policy, tokenizer = load_language_model(sft, device)
    if reward_model is None:
        value = from_language_model(sft, device, seed)
    else:
        check_same_text(tokenizer, load_tokenizer(reward_model), sft, reward_model)
        value = load_scalar_model(reward_model, device)
    if lora is None:
        reference = load_language_model(sft, device).model
        reward = None if reward_model is None else load_scalar_model(reward_model, device)
        roles = Roles(tokenizer, policy, reference, value, reward)
    else:
        policy_adapters = add_lora(policy, lora.rank, lora.alpha, lora.targets, "CAUSAL_LM")
        value_adapters = add_lora(value, lora.rank, lora.alpha, lora.targets, "SEQ_CLS")
        policy, value = policy_adapters.get_base_model(), value_adapters.get_base_model()
        reward = None if reward_model is None else value
        roles = Roles(tokenizer, policy, policy, value, reward, policy_adapters, value_adapters)
    for model in (roles.policy, roles.reference, roles.value):
        model.eval()
    if roles.reward is not None:
        roles.reward.eval()
        with roles.as_reward():
            check_scores_are_independent(roles.reward, tokenizer.pad_token_id)
    return roles


def check_same_text(
    policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, policy_source: Path, reward_source: Path
) -> None:
    """Raise ModelError unless both models read the same ids for the same conversation."""
    what = text_difference(policy, reward)
    if what is not None:
        raise ModelError(
            f"the {what} of the reward model '{reward_source}' is not that of the policy '{policy_source}', so it "
            "would score other text than it was trained on; train the reward model from this SFT model, or set "
            "text_crosses_over for it in ppo.rewards."
        )


def text_difference(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> str | None:
    """What makes the two read other ids for the same conversation; None where nothing does."""
    same = {
        "vocabulary": policy.get_vocab() == reward.get_vocab(),
        "chat template": policy.chat_template == reward.chat_template,
        "EOS token": policy.eos_token_id == reward.eos_token_id,
    }
    return next((what for what, is_same in same.items() if not is_same), None)
