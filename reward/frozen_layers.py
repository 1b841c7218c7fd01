"""A reward model over frozen layers, for few comparisons: a linear readout of the mean of a text's states.

Evidence that an answer is good may be in any of its words; the state of the last word, trained to predict the next one,
keeps little of it. So the backbone is cut after frozen layers, the mean of their states is computed once for each text,
and a readout is fitted to the ranking loss with an L2 penalty. This is a convex problem with a reproducible result.
(Linear readouts of middle layers: Alain & Bengio 2016; instead of tuning on little data: Kumar et al. 2022.)

It is written into one more layer of the same architecture, so the model stays a plain sequence classifier: zero queries
attend evenly, values compute the readout, and a large output projection outweighs the last token's own state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from policy.errors import ModelError
from policy.reading.body import body_of
from reward.ranking_loss import PairIndex, kwise_ranking_loss
from reward.scalar_model import scalar_head
from reward.shared_prompt import PackedAnswers, packed_scores

LOUD = 3e4  # scale of the readout, far above the last token's own state; float16 ends at 6.5e4
SMALL = 0.05  # deviation of the readout relative to the constant, which sets the final norm; 3 deviations lose 1 %


class Readout(NamedTuple):
    """Two directions in the space of mean states, float64."""

    score: Tensor  # (hidden,) mean @ score is the text's score; its average over the fitted texts is 0
    constant: Tensor  # (hidden,) mean @ constant is as close to 1 as possible for every text
    spread: float  # standard deviation of the score over these texts

    def divided(self, by: float) -> Readout:
        return Readout(self.score / by, self.constant, self.spread / by)


def cut_config(config: PreTrainedConfig, n_layers: int) -> None:
    """Set a config to `n_layers` frozen layers and the one that reads them."""
    config.num_hidden_layers = n_layers + 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: n_layers + 1]


def cut_after(model: PreTrainedModel, n_layers: int) -> None:
    """Keep a scalar model's first `n_layers` layers and one above them.

    Raises ModelError if the model has too few layers or is not built like Llama."""
    body: Any = body_of(model)
    layers = getattr(body, "layers", None)
    parts = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    if (
        layers is None
        or not hasattr(body, "norm")
        or not {name for name, _ in layers[-1].named_modules()}.issuperset(parts)
    ):
        raise ModelError(
            f"reward_model.frozen_layers supports models like Llama, not {type(model).__name__}; remove the setting."
        )
    if not n_layers < len(layers):
        raise ModelError(
            f"reward_model.frozen_layers is {n_layers}, but this model has {len(layers)} layers and one must read the "
            f"frozen ones; set it to at most {len(layers) - 1} (three fifths of all layers: {len(layers) * 3 // 5})."
        )
    body.layers = layers[: n_layers + 1]
    cut_config(model.config, n_layers)


@torch.no_grad()
def mean_states(model: PreTrainedModel, packed: PackedAnswers) -> Tensor:
    """(answers, hidden) float32: the mean, over prompt and answer, of the input to the last layer's attention."""
    attention: Any = body_of(model).layers[-1].self_attn
    given: list[Tensor] = []
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        packed_scores(model, packed, normalised=False)
    finally:
        hook.remove()
    if len(given) != 1:
        raise ModelError(
            "reward_model.frozen_layers needs texts of unequal length in one forward pass, which "
            f"{type(model).__name__} cannot read exactly; remove the setting."
        )
    row, column = packed.row, packed.column
    segments = packed.segments[row]  # (answers, width)
    own, prompt = packed.segments[row, column][:, None], packed.prompts[row, column][:, None]
    until = torch.arange(segments.shape[1], device=row.device) <= column[:, None]
    read = (((segments == own) | (segments == prompt)) & until).float()
    return torch.einsum("aw,awh->ah", read / read.sum(1, keepdim=True), given[0][row].float())


def fit_readout(means: Tensor, pairs: PairIndex, l2: float) -> Readout:
    """Minimise the ranking loss plus l2 * |w|^2, with w in units of each channel's root mean square over the pairs.

    means (answers, hidden), in the order to which the pairs refer."""
    means = means.double()
    scale = (means[pairs.winner] - means[pairs.loser]).square().mean(0).sqrt().clamp_min(1e-12)
    scaled = means / scale
    weight = torch.zeros(means.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = kwise_ranking_loss(scaled @ weight, pairs) + l2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    score = weight.detach() / scale
    # The smallest vector with `mean @ constant` = 1: ridge regression of 1, with a penalty far below the means' size.
    gram = means.T @ means / len(means)
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    constant = torch.linalg.solve(gram, means.mean(0))
    score = score - (means @ score).mean() / (means @ constant).mean() * constant
    return Readout(score, constant, float((means @ score).std()))


@torch.no_grad()
def write_readout(model: PreTrainedModel, readout: Readout) -> None:
    """Make the last layer and the head compute `mean @ readout.score`. The error is one or two hundredths for scores
    within three deviations, if `constant` gives one; scores saturate beyond twenty deviations."""
    body: Any = body_of(model)
    layer = body.layers[-1]
    attention = layer.self_attn
    for module in (attention.q_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj, scalar_head(model)):
        for parameter in module.parameters():
            parameter.zero_()
    small = SMALL / readout.spread
    attention.v_proj.weight[0] = readout.score * small
    attention.v_proj.weight[1] = readout.constant
    # Two channels with similar weights in the final norm, so that neither is lost to rounding.
    norm = body.norm.weight.abs()
    score_channel, constant_channel = (norm - norm.median()).abs().argsort()[:2].tolist()
    attention.o_proj.weight[score_channel, 0] = LOUD  # the first query head reads the first key-value head
    attention.o_proj.weight[constant_channel, 1] = LOUD
    unit = torch.zeros(1, 1, len(norm), device=norm.device)
    unit[..., score_channel], unit[..., constant_channel] = LOUD * SMALL, LOUD
    of_one_deviation = body.norm(unit)[0, 0, score_channel]
    scalar_head(model).get_parameter("weight")[0, score_channel] = readout.spread / of_one_deviation


def check_readout(model: PreTrainedModel, packed: PackedAnswers, readout: Readout) -> None:
    """Raise ModelError unless the complete model gives these texts the readout's scores."""
    expected = mean_states(model, packed).double() @ readout.score.to(packed.ids.device)
    with torch.no_grad():
        found = packed_scores(model, packed, normalised=False)
    off = ((found - expected).abs() / (readout.spread + expected.abs())).max().item()
    if not off < 0.5:
        raise ModelError(
            f"reward_model.frozen_layers does not fit {type(model).__name__}: the model's scores differ from the "
            f"readout's by {off:.2g} of a standard deviation; remove the setting."
        )
