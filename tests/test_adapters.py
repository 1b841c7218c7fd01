from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import quickstart_tokenizer, tiny_llama

from policy.adapters import add_lora, describe_reach, linear_layers, merged, reach, untrained_ids
from policy.errors import ModelError
from policy.language_model import load_language_model, save_checkpoint

CPU = torch.device("cpu")
IDS = torch.arange(3, 20)[None]
NEW = [5, 6]


def adapted_names(model: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    }


def trained_model(tied: bool, token_ids: list[int] | None = None) -> tuple[Any, torch.Tensor]:
    """-> (a model with adapters and new rows, all of them changed as training would, its logits)."""
    model = add_lora(tiny_llama(quickstart_tokenizer(), tie_word_embeddings=tied), 2, 4.0, "q_proj", "CAUSAL_LM", NEW)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3, generator=rng)
        return model, model(IDS).logits


@pytest.mark.parametrize(
    "targets, words",
    [
        ("q_proj,v_porj", "no linear layer named 'v_porj'; its linear layers are q_proj, k_proj, v_proj"),
        ("c_attn,q_proj,wte", "no linear layer named 'c_attn' or 'wte'"),
        ("Q_PROJ", "no linear layer named 'Q_PROJ'"),
        ("embed_tokens", "no linear layer named 'embed_tokens'"),
        ("layers.9.self_attn.q_proj", "no linear layer named 'layers.9"),
        ("proj", "no linear layer named 'proj'"),
        ("*_proj", "no linear layer named '[*]_proj'"),  # not a regular expression
        (" , ", "no linear layer named ''"),
        ("lm_head,q_proj", "'lm_head' is its output head, .* would not be trained"),
        (r".*(q_proj|lm_head)", "is its output head"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_target_that_fits_no_linear_layer_is_named_with_those_there_are(targets: str, words: str, tied: bool) -> None:
    with pytest.raises(ModelError, match=rf"^lora\.targets '.*' does not fit this model: .*{words}") as error:
        add_lora(tiny_llama(quickstart_tokenizer(), tie_word_embeddings=tied), 2, 4.0, targets, "CAUSAL_LM")
    assert "\n" not in str(error.value) and "down_proj, lm_head" not in str(error.value)


@pytest.mark.parametrize(
    "targets, found",
    [
        ("q_proj, v_proj", {f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")}),
        (r".*layers\.1\..*(up|down)_proj", {f"model.layers.1.mlp.{name}" for name in ("up_proj", "down_proj")}),
        ("self_attn.q_proj", {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}),
    ],
)
def test_targets_are_names_or_regular_expressions_of_full_names(targets: str, found: set[str]) -> None:
    model = add_lora(tiny_llama(quickstart_tokenizer()), 2, 4.0, targets, "CAUSAL_LM")
    assert adapted_names(model) == found


def test_all_linear_reaches_every_layer_but_the_head() -> None:
    model = tiny_llama(quickstart_tokenizer())
    layers = set(linear_layers(model)) - {"lm_head"}
    assert adapted_names(add_lora(model, 2, 4.0, "all-linear", "CAUSAL_LM")) == layers


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_train_and_are_merged_into_a_whole_model(tied: bool, tmp_path: Path) -> None:
    model, logits = trained_model(tied)
    rows = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name]
    assert len(rows) == (1 if tied else 2)
    before = tiny_llama(quickstart_tokenizer(), tie_word_embeddings=tied)
    whole = merged(copy.deepcopy(model))  # as a candidate is saved: training goes on
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, logits)
    whole = merged(model)
    save_checkpoint(whole, quickstart_tokenizer(), tmp_path)
    loaded = load_language_model(tmp_path, CPU).model
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, logits, atol=1e-4, rtol=1e-4)
    for found, old in (
        (loaded.model.embed_tokens.weight, before.model.embed_tokens.weight),
        (loaded.lm_head.weight, before.lm_head.weight),
    ):
        changed = (found != old).any(1).nonzero().flatten().tolist()
        assert changed == NEW
    assert loaded.config.tie_word_embeddings == tied and type(whole.lm_head) is torch.nn.Linear


def test_only_new_rows_get_a_gradient() -> None:
    model = add_lora(tiny_llama(quickstart_tokenizer()), 2, 4.0, "q_proj", "CAUSAL_LM", NEW)
    model(torch.tensor([[5, 7, 8]])).logits.logsumexp(-1).sum().backward()
    for layer in (model.get_base_model().model.embed_tokens, model.get_base_model().lm_head):
        assert layer.parametrizations.weight.original.grad is None
        assert layer.parametrizations.weight[0].rows.grad.shape == (2, 32)
    assert model.get_base_model().lm_head.parametrizations.weight[0].rows.grad.abs().sum(1).all()


def test_a_model_that_knows_its_tokens_trains_no_rows(tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer), tokenizer, tmp_path)
    model, tokenizer = load_language_model(tmp_path, CPU)
    assert untrained_ids(model, tokenizer, set(range(len(tokenizer)))) == ()


def test_new_tokens_are_those_added_at_loading_and_rows_like_none_that_was_trained(tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    names = ["<zero>", "<mean>", "<fine>", "<unused>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    model = tiny_llama(tokenizer)
    zero, mean, fine, _ = tokenizer.convert_tokens_to_ids(names)
    rows = model.get_input_embeddings().weight.data
    rows[zero], rows[mean] = 0, rows.mean(0)
    save_checkpoint(model, tokenizer, tmp_path)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_language_model(tmp_path, CPU)
    used = {zero, mean, fine, tokenizer.eos_token_id, 30}
    assert untrained_ids(model, tokenizer, used) == (zero, mean, tokenizer.eos_token_id)


def test_an_eos_that_the_models_configs_do_not_name_is_new(tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    old = tokenizer.eos_token_id
    save_checkpoint(tiny_llama(tokenizer), tokenizer, tmp_path)
    tokenizer.eos_token = "<unk>"
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_language_model(tmp_path, CPU)
    assert untrained_ids(model, tokenizer, {old, tokenizer.eos_token_id, 30}) == (tokenizer.eos_token_id,)


def test_the_reach_is_the_share_of_parameters_in_adapted_layers() -> None:
    plain = tiny_llama(quickstart_tokenizer())
    whole = sum(weight.numel() for weight in plain.parameters())
    reached = sum(layer.self_attn.q_proj.weight.numel() for layer in plain.model.layers)
    found = reach(add_lora(plain, 2, 4.0, "q_proj", "CAUSAL_LM", NEW))
    assert found == {"share": pytest.approx(reached / whole), "trained": 2 * 2 * (32 + 32) + 2 * 2 * 32, "tokens": 2}
    assert describe_reach("sft", found) == (
        f"sft: adapters on layers with {reached / whole:.0%} of the model's parameters, and the rows of 2 new tokens; "
        "384 parameters train"
    )
