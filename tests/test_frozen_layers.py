"""Layers frozen under one that reads a text's mean: kept states stand for whole texts; what is published is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_recipe import Chain, write_recipe
from test_reward_model_stage import CPU, config_of, train
from test_shared_prompt import LLAMA, PAD, RAGGED, VOCABULARY, rankings, scalar_model
from torch.nn.functional import logsigmoid
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from data_schema import Comparison, read_records
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.encoding import encode_answers
from policy.errors import ModelError
from policy.language_model import load_tokenizer, save_checkpoint
from reward.frozen_layers import check_readout, cut_after, fit_readout, mean_states, write_readout
from reward.ranking_loss import PairIndex, pair_index
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from reward.shared_prompt import pack_answers, packed_scores
from stages.comparisons.stage import TRAIN_FILE
from stages.errors import ConfigError
from stages.reward_model.frozen import PENALTIES
from stages.settings import LoraConfig

SHAPE = LLAMA | {"num_hidden_layers": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2, biases": Qwen2Config(**SHAPE),
    "qwen3, normed queries": Qwen3Config(**SHAPE, head_dim=8),
}
RANKS = [[1, 2, 3], [2, 1], [9, 8, 7, 6, 5, 4, 3, 2, 1], [1]]


def cut_model(config: Any, n_layers: int = 2) -> Any:
    model = scalar_model(config)
    cut_after(model, n_layers)
    return model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_written_model_gives_the_readout_s_scores(config: Any, share: bool) -> None:
    model = cut_model(config)
    packed = pack_answers(*rankings(RAGGED), PAD, LLAMA["hidden_size"], share)
    readout = fit_readout(mean_states(model, packed), pair_index(RANKS), l2=0.1)
    write_readout(model, readout)
    check_readout(model, packed, readout)
    expected = mean_states(model, packed).double() @ readout.score
    found = packed_scores(model, packed, normalised=False).double()
    assert expected.std() == pytest.approx(readout.spread) and expected.mean().abs() < 0.2 * readout.spread
    assert (found - expected).abs().max() < 0.05 * readout.spread
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9999


def test_the_readout_reads_the_mean_over_prompt_and_answer() -> None:
    """By its definition: the mean of normed states of a text alone, as a forward pass hands them out."""
    model = cut_model(LlamaConfig(**SHAPE))
    prompts, answers = rankings([(6, [3, 5])])
    means = mean_states(model, pack_answers(prompts, answers, PAD, 10**6))
    for mean, answer in zip(means, answers[0], strict=True):
        hidden = model.model(input_ids=torch.tensor([prompts[0] + answer]), output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(mean, model.model.layers[-1].input_layernorm(hidden[0]).mean(0), atol=1e-5, rtol=0)


def test_the_readout_is_the_minimum_of_the_penalised_ranking_loss() -> None:
    """The loss eq. 1 in float64, its gradient 0 where the fit ended; scores are 0 on average."""
    means = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0
    pairs = pair_index([[2, 1, 3]] * 10)
    readout = fit_readout(means, pairs, l2=0.05)
    scale = (means[pairs.winner] - means[pairs.loser]).square().mean(0).sqrt()

    def objective(score: torch.Tensor) -> torch.Tensor:
        difference = (means[pairs.winner] - means[pairs.loser]) @ score
        return -logsigmoid(difference).mean() + 0.05 * (score * scale).square().sum()

    # Only a step along `constant`, which changes no difference, is between the fit and the readout.
    least = objective(newton(means, pairs, scale, 0.05))
    assert objective(torch.zeros(5, dtype=torch.float64)) - least > 0.001
    differences = (means[pairs.winner] - means[pairs.loser]) @ (readout.score - newton(means, pairs, scale, 0.05))
    along = (means[pairs.winner] - means[pairs.loser]) @ readout.constant
    torch.testing.assert_close(differences, along * (differences @ along) / (along @ along), atol=1e-5, rtol=1e-4)
    assert (means @ readout.score).mean().abs() < 1e-9


def newton(means: torch.Tensor, pairs: PairIndex, scale: torch.Tensor, l2: float) -> torch.Tensor:
    """Newton's method on the same objective."""
    difference = (means[pairs.winner] - means[pairs.loser]) / scale
    weight = torch.zeros(means.shape[1], dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(-difference @ weight)
        gradient = -(difference * p[:, None]).mean(0) + 2 * l2 * weight
        hessian = (difference * (p * (1 - p))[:, None]).T @ difference / len(difference)
        weight -= torch.linalg.solve(hessian + 2 * l2 * torch.eye(len(weight), dtype=torch.float64), gradient)
    return weight / scale


def test_a_layer_that_attends_unevenly_is_refused() -> None:
    model = cut_model(LlamaConfig(**SHAPE))
    packed = pack_answers(*rankings(RAGGED), PAD, 32)
    readout = fit_readout(mean_states(model, packed), pair_index(RANKS), l2=0.1)
    write_readout(model, readout)
    torch.nn.init.normal_(model.model.layers[-1].self_attn.q_proj.weight)
    with pytest.raises(ModelError, match="does not fit LlamaForSequenceClassification"):
        check_readout(model, packed, readout)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64), "supports models like Llama, not GPT2For"),
        (LlamaConfig(**LLAMA), "frozen_layers is 2, but this model has 2 layers"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused_with_the_cure(config: Any, words: str) -> None:
    config.vocab_size = VOCABULARY
    with pytest.raises(ModelError, match=words):
        cut_after(scalar_model(config), 2)


def test_frozen_layers_take_no_adapters(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="frozen_layers and lora"):
        config_of(chain, frozen_layers=1, lora=LoraConfig())
    with pytest.raises(ConfigError, match="frozen_layers is 0"):
        config_of(chain, frozen_layers=0)


def test_what_is_published_is_a_plain_classifier_over_the_sft_model_s_first_layers(
    chain: Chain, tmp_path: Path
) -> None:
    output, result = train(chain, tmp_path, frozen_layers=1, micro_batch_tokens=128)
    started, ended = load_file(chain.checkpoint("sft") / "model.safetensors"), load_file(output / "model.safetensors")
    changed = {name for name, weight in ended.items() if not torch.equal(weight, started.get(name, torch.empty(0)))}
    layer = "model.layers.1"
    projections = {f"{layer}.self_attn.{part}_proj.weight" for part in "qvo"}
    assert changed == {"score.weight", f"{layer}.mlp.down_proj.weight", *projections}
    model: Any = AutoModelForSequenceClassification.from_pretrained(output)
    assert model.config.num_hidden_layers == 2
    assert result.metrics["l2"] in PENALTIES and 0 < result.metrics["folds/loss"] < 1
    assert accuracy(output, list(read_records(chain.checkpoint("comparisons") / TRAIN_FILE, Comparison))) > 0.7


def accuracy(directory: Path, comparisons: list[Comparison]) -> float:
    """Share of pairs that a published model has right."""
    model, tokenizer = load_scalar_model(directory, CPU), load_tokenizer(directory)
    right = []
    for comparison in comparisons:
        prompt, answers = encode_answers(tokenizer, comparison.prompt, comparison.responses)
        scores = score_responses(model, [prompt] * len(answers), answers, tokenizer.pad_token_id).tolist()
        ranked = sorted(zip(comparison.ranks, scores, strict=True))
        right += [a[1] > b[1] for i, a in enumerate(ranked) for b in ranked[i + 1 :] if a[0] < b[0]]
    return sum(right) / len(right)


def test_ppo_learns_from_a_cut_reward_model(chain: Chain, copy_of_chain: Path) -> None:
    """As reward and value model, two layers of three; PPO's own check of scores passes at its start."""
    from tiny_models import quickstart_tokenizer, tiny_llama

    tokenizer = quickstart_tokenizer()
    base = copy_of_chain / "three_layers"
    save_checkpoint(
        tiny_llama(tokenizer, num_hidden_layers=3, initializer_range=0.02, tie_word_embeddings=True), tokenizer, base
    )
    recipe = write_recipe(copy_of_chain / "cut.yaml", chain.recipe, sft__base_model=str(base))
    changes = ["--reward_model.frozen_layers", "1", "--ppo.iterations", "2"]
    stages = run_pipeline(load_recipe(recipe, changes), copy_of_chain)["stages"]
    reward, policy = (
        AutoConfig.from_pretrained(copy_of_chain / "store" / "checkpoints" / stages[stage]["key"])
        for stage in ("reward_model", "ppo")
    )
    assert (reward.num_hidden_layers, policy.num_hidden_layers) == (2, 3)
