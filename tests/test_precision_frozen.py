"""Frozen weights under bfloat16 autocast: held as bfloat16 while a model is read, with the same results bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain
from tiny_models import quickstart_tokenizer, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from policy.adapters import add_lora
from policy.language_model import load_language_model
from policy.precision import cast_frozen, compute_in
from policy.sampling.generate import Responses, sample_responses
from policy.sampling.rollout import as_rollout
from reward.scalar_model import load_scalar_model, response_scores, scalar_head

CPU = torch.device("cpu")


def tied_llama() -> PreTrainedModel:
    return tiny_llama(quickstart_tokenizer(), tie_word_embeddings=True).requires_grad_(False)


def llama_with_adapters() -> PreTrainedModel:
    model = tiny_llama(quickstart_tokenizer(), tie_word_embeddings=True)
    torch.manual_seed(0)  # draws the adapters
    adapted: Any = add_lora(model, 4, 8.0, "all-linear", "CAUSAL_LM")
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    return adapted.get_base_model()


def gpt2() -> PreTrainedModel:
    """Its layers have biases, and are transformers' Conv1D instead of nn.Linear."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(quickstart_tokenizer())}
    config = GPT2Config(**shape, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


MODELS = [tied_llama, llama_with_adapters, gpt2]


def sample(model: PreTrainedModel) -> Responses:
    prompts = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    return sample_responses(
        model,
        prompts,
        torch.ones_like(prompts, dtype=torch.bool),
        max_new_tokens=12,
        temperature=1.0,
        stop_ids=[],
        pad_id=0,
        rng=torch.Generator().manual_seed(2),
    )


class CountedCasts(TorchDispatchMode):
    """Counts casts of matrices in `weights` to bfloat16."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.places, self.n = {weight.data_ptr() for weight in weights}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.n += args[0].dim() == 2 and args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("build", MODELS)
def test_held_casts_give_autocast_s_numbers_bit_for_bit_and_no_token_casts_a_frozen_weight(build: Any) -> None:
    model = build()
    compute_in(model, "bfloat16")
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(3))
    with CountedCasts(frozen) as counted:
        expected = sample(model)
    assert counted.n >= 12 * 8  # every frozen matrix, for every token: what this context is for
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
    with cast_frozen(model):
        with CountedCasts(frozen) as counted:
            found = sample(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(ids).logits, logits)
    assert counted.n == 0
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("build", MODELS)
def test_afterwards_every_weight_is_the_one_it_was_also_after_an_error(build: Any) -> None:
    model = build()
    compute_in(model, "bfloat16")
    before = dict(model.named_parameters(remove_duplicate=False))
    embedding = model.get_input_embeddings().get_parameter("weight")
    with pytest.raises(RuntimeError, match="stop"), cast_frozen(model):
        inside = dict(model.named_parameters(remove_duplicate=False))
        assert model.get_input_embeddings().get_parameter("weight") is embedding
        assert model.get_output_embeddings().weight.dtype == torch.bfloat16  # type: ignore[union-attr]
        for name, weight in before.items():  # what trains is untouched, so that an optimiser still finds it
            assert (inside[name] is weight) == (inside[name].dtype == torch.float32)
            assert inside[name] is weight or not weight.requires_grad
        raise RuntimeError("stop")
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is weight for name, weight in before.items())


def test_the_gradient_of_adapters_is_the_same_bit_for_bit() -> None:
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(3))
    gradients = []
    for hold in (False, True):
        model = llama_with_adapters()
        compute_in(model, "bfloat16" if hold else "float32")
        with cast_frozen(model):  # does nothing for a model that is read in float32
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(ids, labels=ids).loss
            loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None and torch.equal(one, other) and one.abs().sum() > 0


def test_a_model_read_in_float32_keeps_its_weights() -> None:
    model = tied_llama()
    with cast_frozen(model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_scalar_model_s_head_stays_float32(chain: Chain) -> None:
    """It is read outside of autocast: rounded, scores would be a hundredth off."""
    model = load_scalar_model(chain.checkpoint("reward_model"), CPU).eval().requires_grad_(False)
    rollout = as_rollout([[5, 6, 7]] * 2, [[8, 9], [10]], 0, CPU)
    compute_in(model, "bfloat16")
    expected = response_scores(model, rollout)
    with cast_frozen(model):
        assert scalar_head(model).get_parameter("weight").dtype == torch.float32
        assert any(weight.dtype == torch.bfloat16 for weight in model.parameters())
        assert torch.equal(response_scores(model, rollout), expected)


def test_a_published_policy_is_sampled_the_same(tiny_base: Path) -> None:
    model = load_language_model(tiny_base, CPU).model.requires_grad_(False)
    compute_in(model, "bfloat16")
    expected = sample(model)
    with cast_frozen(model):
        assert torch.equal(sample(model).tokens, expected.tokens)
