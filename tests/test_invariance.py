from __future__ import annotations

from typing import Any

import pytest
import torch
from small_recipe import Chain
from torch import nn

from policy.errors import ModelError
from policy.language_model import load_tokenizer
from reward.invariance import check_scores_are_independent
from reward.scalar_model import load_scalar_model, scalar_head

CPU = torch.device("cpu")


@pytest.fixture
def reward_model(chain: Chain) -> tuple[Any, int]:
    directory = chain.checkpoint("reward_model")
    return load_scalar_model(directory, CPU).eval(), load_tokenizer(directory).pad_token_id


def test_a_trained_reward_model_passes(reward_model: tuple[Any, int]) -> None:
    check_scores_are_independent(*reward_model)


def test_dropout_left_on_is_found(reward_model: tuple[Any, int]) -> None:
    model, pad_id = reward_model
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    with pytest.raises(ModelError, match=r"a different score when it is .*off by"):
        check_scores_are_independent(model, pad_id)


def test_a_head_that_looks_at_its_neighbours_is_found(reward_model: tuple[Any, int]) -> None:
    """As batch normalisation would: each score moves with the mean of its batch."""
    model, pad_id = reward_model
    weight = scalar_head(model).get_parameter("weight")

    class Relative(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            scores = hidden @ weight.T
            return scores - 0.1 * scores.mean(0, keepdim=True)

    model.score = Relative()
    with pytest.raises(ModelError, match="a different score when it is scored together"):
        check_scores_are_independent(model, pad_id)


def test_a_model_whose_tokens_see_the_padding_is_found(reward_model: tuple[Any, int]) -> None:
    """Attention in both directions, as in an encoder."""
    model, pad_id = reward_model
    body = model.model.forward

    def both_ways(input_ids: torch.Tensor, **settings: Any) -> Any:
        out = body(input_ids=input_ids, **settings)
        out.last_hidden_state = out.last_hidden_state + 0.01 * out.last_hidden_state.mean(1, keepdim=True)
        return out

    model.model.forward = both_ways
    with pytest.raises(ModelError, match="a different score when it is"):
        check_scores_are_independent(model, pad_id)


def test_scores_that_are_no_numbers_are_refused(reward_model: tuple[Any, int]) -> None:
    model, pad_id = reward_model
    with torch.no_grad():
        scalar_head(model).get_parameter("weight").fill_(float("nan"))
    with pytest.raises(ModelError, match="off by nan"):
        check_scores_are_independent(model, pad_id)


def test_a_large_scale_of_scores_is_no_deviation(reward_model: tuple[Any, int]) -> None:
    model, pad_id = reward_model
    model.config.reward_gain, model.config.reward_bias = 1000.0, -50.0
    check_scores_are_independent(model, pad_id)
