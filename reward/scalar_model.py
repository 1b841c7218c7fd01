"""A language model's body with a scalar head: r(prompt, response) at the last real token, V(state) at every token.

It is a Hugging Face sequence-classification model with one label, which AutoModelForSequenceClassification opens if the
architecture has such a class (reward/classes.py). Its config stores the normalisation (`reward_gain`, `reward_bias`),
since a bias in the head is lost on reload.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.kinds import check_kind
from policy.language_model import check_decoder_only, clear_load_errors, load_config
from policy.sampling.rollout import Rollout, states_between, unflatten
from reward.classes import head_of_scalar, load_scalar
from reward.normalisation import RewardNormalisation


def from_language_model(source: str | Path, device: torch.device, seed: int) -> PreTrainedModel:
    """Build a scalar model on a language model's body, with a random head of standard deviation 1/sqrt(d+1)
    (lm-human-preferences; Huang et al. 2024, detail 11)."""
    check_decoder_only(source)
    check_kind(load_config(source), source, "language model")
    with clear_load_errors(source, "language model"):
        model = load_scalar(source, load_config(source), with_head=False)
    draw_head(scalar_head(model), seed)
    store_normalisation(model, RewardNormalisation())
    return model.to(device)


def draw_head(head: torch.nn.Module, seed: int) -> None:
    """Initialise the head from a seed, with the same values on every device."""
    weight = head.get_parameter("weight")  # (1, hidden)
    drawn = torch.empty(weight.shape).normal_(
        0.0, (weight.shape[1] + 1) ** -0.5, generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        weight.copy_(drawn)


def load_scalar_model(source: str | Path, device: torch.device) -> PreTrainedModel:
    """Load a published reward model in float32. Raises ModelError for any other kind of model."""
    with clear_load_errors(source, "reward model"):
        check_decoder_only(source)
        config = load_config(source)
        check_kind(config, source, "reward model")
        model = load_scalar(source, config, with_head=True)
    return model.to(device)


def scalar_head(model: PreTrainedModel) -> torch.nn.Module:
    """The layer from hidden state to scalar, under the architecture's name for it. Raises ModelError without one."""
    head = head_of_scalar(model)
    if head is None:
        raise ModelError(f"{type(model).__name__} has no head named 'score' or 'classifier'; use another architecture.")
    return head


def store_normalisation(model: PreTrainedModel, normalisation: RewardNormalisation) -> None:
    model.config.reward_gain, model.config.reward_bias = normalisation.gain, normalisation.bias


def stored_normalisation(model: PreTrainedModel) -> RewardNormalisation:
    """The gain and bias in a model's config; 1 and 0 for a model from elsewhere. Raises ModelError if they are not
    finite numbers."""
    scale = getattr(model.config, "reward_gain", 1.0), getattr(model.config, "reward_bias", 0.0)
    for name, value in zip(("reward_gain", "reward_bias"), scale, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(
                f"{name} in the config.json of '{model.config.name_or_path}' is not a finite number; correct it, or "
                "copy the checkpoint again."
            )
    return RewardNormalisation(*scale)


def response_values(model: PreTrainedModel, rollout: Rollout, normalised: bool = True) -> Tensor:
    """(batch, response) V before each response token, read at the preceding token. float32, padding 0."""
    prompt_lengths = rollout.prompt_mask.sum(1)
    hidden = states_between(model, rollout, prompt_lengths - 1, prompt_lengths - 1 + rollout.lengths)
    return unflatten(scalars(model, hidden, normalised), rollout.response_mask)


def response_scores(model: PreTrainedModel, rollout: Rollout, normalised: bool = True) -> Tensor:
    """(batch,) r(prompt, response), read at the last real token: EOS, or the last one before the cut. float32."""
    if not rollout.response_mask.any(1).all():
        raise ModelError("a response has no tokens, so its score cannot be read at the last one; drop empty responses.")
    ends = rollout.prompt_mask.sum(1) + rollout.lengths
    return scalars(model, states_between(model, rollout, ends - 1, ends), normalised)


def scalars(model: PreTrainedModel, hidden: Tensor, normalised: bool) -> Tensor:
    """(n, hidden) states of the body -> (n,) scores or values, in at least float32."""
    head = scalar_head(model)
    dtype = next((weight.dtype for weight in head.parameters()), hidden.dtype)  # states are bfloat16 under autocast
    values: Tensor = head(hidden.to(dtype)).squeeze(-1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return stored_normalisation(model)(values) if normalised else values
