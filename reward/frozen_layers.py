"""A reward model over frozen layers, which reads the mean of a text's states: for few comparisons.

What tells a good answer may stand in any of its words, and the states of the last one, made to predict what comes next,
keep little of it. So the backbone is cut and one more layer attends evenly to every token: its queries are zero. What
that layer adds at the last token is linear in the mean of the states below, which never change; they are computed once,
and its value and output projections and the head train on them in seconds. The model stays a plain sequence classifier.

Linear readouts of frozen middle layers: Alain & Bengio 2016; over tuning on little data: Kumar et al. 2022.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from policy.errors import ModelError
from policy.shared_weights import share_weights
from reward.scalar_model import scalar_head, scalars
from reward.shared_prompt import PackedAnswers, packed_scores

TRAINED = ("v_proj", "o_proj")


class FrozenStates(NamedTuple):
    """What the layer above the frozen ones needs of each text."""

    mean: Tensor  # (answers, hidden) float32, over the tokens of prompt and answer, of what its attention reads
    last: Tensor  # (answers, hidden) float32, of the answer's last token


def freeze_layers(model: PreTrainedModel, n_layers: int) -> None:
    """Cut a scalar model after `n_layers` layers that stay as they are and one above them that attends evenly; its
    value and output projections and the head are left to train.

    Raises ModelError for fewer layers than that, or for an architecture without `layers` and `self_attn.q_proj`.
    """
    body: Any = getattr(model, model.base_model_prefix)
    layers = getattr(body, "layers", None)
    if layers is None or not hasattr(getattr(layers[-1], "self_attn", None), "q_proj"):
        raise ModelError(
            f"reward_model.frozen_layers knows models built like Llama, not {type(model).__name__}; leave it out."
        )
    if not n_layers < len(layers):
        raise ModelError(
            f"reward_model.frozen_layers is {n_layers}, but this model has {len(layers)} layers, one of which is to "
            f"read the frozen ones; set it to {len(layers) - 1} or fewer (two thirds of them: {len(layers) * 2 // 3})."
        )
    body.layers = layers[: n_layers + 1]
    cut_config(model.config, n_layers)
    attention = body.layers[-1].self_attn
    with torch.no_grad():
        for parameter in attention.q_proj.parameters():
            parameter.zero_()
    model.requires_grad_(False)
    for trained in (*(getattr(attention, name) for name in TRAINED), scalar_head(model)):
        trained.requires_grad_(True)


def cut_config(config: PreTrainedConfig, n_layers: int) -> None:
    """Let a config speak of `n_layers` layers and the one that reads them."""
    config.num_hidden_layers = n_layers + 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: n_layers + 1]


@torch.no_grad()
def frozen_states(model: PreTrainedModel, packed: PackedAnswers) -> FrozenStates:
    """One pass over packed answers, up to the last layer of a model that `freeze_layers` has cut."""
    layer: Any = getattr(model, model.base_model_prefix).layers[-1]
    seen: dict[str, Tensor] = {}

    def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name] = (args[0] if args else kwargs["hidden_states"]).float()

    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, name=name: keep(name, args, kwargs), with_kwargs=True)
        for name, module in (("layer", layer), ("attention", layer.self_attn))
    ]
    try:
        packed_scores(model, packed, normalised=False)
    finally:
        for hook in hooks:
            hook.remove()
    row, column = packed.row, packed.column
    segments = packed.segments[row]  # (answers, width)
    own, prompt = packed.segments[row, column][:, None], packed.prompts[row, column][:, None]
    before = torch.arange(segments.shape[1], device=row.device) <= column[:, None]
    read = (((segments == own) | (segments == prompt)) & before).float()
    mean = torch.einsum("aw,awh->ah", read / read.sum(1, keepdim=True), seen["attention"][row])
    return FrozenStates(mean, seen["layer"][row, column])


class ReadingLayer(nn.Module):
    """The part of a cut scalar model above its frozen layers, over states that were kept; the weights are the model's.

    A text of one token whose attention is handed the mean gives, at that token, what the whole text gives at its last.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        top: Any = share_weights(getattr(model, model.base_model_prefix))
        top.layers = top.layers[-1:]
        top.layers[0].self_attn.register_forward_pre_hook(self._hand_over, with_kwargs=True)
        self.top, self._mean = top, torch.empty(0)

    def forward(self, mean: Tensor, last: Tensor) -> Tensor:
        """FrozenStates of the answers -> (answers,) raw scores."""
        self._mean = mean.unsqueeze(1)
        hidden = self.top(inputs_embeds=last.unsqueeze(1), use_cache=False).last_hidden_state[:, 0]
        return scalars(self.model, hidden, normalised=False)

    def _hand_over(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self._mean, *args[1:]), kwargs
        return (), kwargs | {"hidden_states": self._mean}


@torch.no_grad()
def check_reading(model: PreTrainedModel, reading: ReadingLayer, packed: PackedAnswers, states: FrozenStates) -> None:
    """Raise ModelError unless kept states give the scores of the whole model."""
    whole, kept = packed_scores(model, packed, normalised=False), reading(*states)
    if not torch.allclose(whole, kept, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"reward_model.frozen_layers does not fit {type(model).__name__}: over kept states a score is "
            f"{(whole - kept).abs().max().item():.2g} off; leave it out."
        )
