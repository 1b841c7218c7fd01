"""Layers frozen under one that reads a text's mean: kept states stand for whole texts; what is published is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_recipe import Chain, job
from test_reward_model import CPU, config_of, train
from test_shared_prompt import LLAMA, PAD, RAGGED, VOCABULARY, rankings, scalar_model
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from data_schema import Comparison, read_records
from policy.encoding import encode_answers
from policy.errors import ModelError
from policy.language_model import load_tokenizer
from reward.frozen_layers import ReadingLayer, check_reading, freeze_layers, frozen_states
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from reward.shared_prompt import pack_answers, packed_scores
from stages import reward_model
from stages.comparisons import TRAIN_FILE
from stages.errors import ConfigError
from stages.ppo_roles import load_roles
from stages.settings import LoraConfig, OptimizerConfig

SHAPE = LLAMA | {"num_hidden_layers": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen3, normed queries": Qwen3Config(**SHAPE, head_dim=8),
}


def cut_model(config: Any, n_layers: int = 2) -> Any:
    model = scalar_model(config)
    freeze_layers(model, n_layers)
    return model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_kept_states_give_the_scores_and_gradients_of_the_whole_texts(config: Any, share: bool) -> None:
    model = cut_model(config)
    packed = pack_answers(*rankings(RAGGED), PAD, LLAMA["hidden_size"], share)
    reading, states = ReadingLayer(model), frozen_states(model, packed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = []
    for scores in (packed_scores(model, packed, normalised=False), reading(*states)):
        weights = torch.linspace(-1, 1, len(scores))
        gradients.append([scores, *torch.autograd.grad((scores * weights).sum(), trained)])
    assert len(trained) >= 3 and gradients[0][0].std() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_the_layer_above_reads_the_mean_over_prompt_and_answer() -> None:
    """By its definition: the mean of normed states of a text alone, as a forward pass hands them out."""
    model = cut_model(LlamaConfig(**SHAPE))
    prompts, answers = rankings([(6, [3, 5])])
    states = frozen_states(model, pack_answers(prompts, answers, PAD, 10**6))
    for i, answer in enumerate(answers[0]):
        hidden = model.model(input_ids=torch.tensor([prompts[0] + answer]), output_hidden_states=True).hidden_states[2]
        normed = model.model.layers[-1].input_layernorm(hidden[0])
        torch.testing.assert_close(states.mean[i], normed.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(states.last[i], hidden[0, -1], atol=1e-5, rtol=1e-4)


def test_a_layer_that_attends_unevenly_is_refused() -> None:
    model = cut_model(LlamaConfig(**SHAPE))
    packed = pack_answers(*rankings(RAGGED), PAD, 32)
    check_reading(model, ReadingLayer(model), packed, frozen_states(model, packed))
    torch.nn.init.normal_(model.model.layers[-1].self_attn.q_proj.weight)
    with pytest.raises(ModelError, match="does not fit LlamaForSequenceClassification"):
        check_reading(model, ReadingLayer(model), packed, frozen_states(model, packed))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64), "models built like Llama, not GPT2For"),
        (LlamaConfig(**LLAMA), "frozen_layers is 2, but this model has 2 layers"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused_with_the_cure(config: Any, words: str) -> None:
    config.vocab_size = VOCABULARY
    with pytest.raises(ModelError, match=words):
        freeze_layers(scalar_model(config), 2)


def test_frozen_layers_take_no_adapters(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="frozen_layers and lora"):
        config_of(chain, frozen_layers=1, lora=LoraConfig())
    with pytest.raises(ConfigError, match="frozen_layers is 0"):
        config_of(chain, frozen_layers=0)


def test_what_is_published_is_a_plain_classifier_over_the_sft_model_s_first_layers(
    chain: Chain, tmp_path: Path
) -> None:
    faster = OptimizerConfig(learning_rate=3e-2)
    output, result = train(chain, tmp_path, frozen_layers=1, epochs=20, micro_batch_tokens=128, optimizer=faster)
    started, ended = load_file(chain.checkpoint("sft") / "model.safetensors"), load_file(output / "model.safetensors")
    changed = {name for name, weight in ended.items() if not torch.equal(weight, started.get(name, torch.empty(0)))}
    attention = "model.layers.1.self_attn"
    assert changed == {"score.weight", *(f"{attention}.{part}_proj.weight" for part in "qvo")}
    assert not ended[f"{attention}.q_proj.weight"].any()
    model: Any = AutoModelForSequenceClassification.from_pretrained(output)
    assert model.config.num_hidden_layers == 2
    assert result.metrics["n"] > 0
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


def test_fewer_layers_are_kept_where_the_model_has_more(chain: Chain, tmp_path: Path) -> None:
    """A checkpoint of three layers is cut to two, and PPO takes it as reward and value model beside three."""
    from tiny_models import quickstart_tokenizer, tiny_llama

    from policy.language_model import save_checkpoint

    tokenizer = quickstart_tokenizer()
    base = tmp_path / "three_layers"
    save_checkpoint(tiny_llama(tokenizer, num_hidden_layers=3), tokenizer, base)
    given = job(tmp_path, {"sft": base, "comparisons": chain.checkpoint("comparisons")})
    reward_model.run(config_of(chain, frozen_layers=1), given)
    roles = load_roles(base, tmp_path / "output", CPU, None)
    assert roles.reward is not None
    assert (roles.policy.config.num_hidden_layers, roles.reward.config.num_hidden_layers) == (3, 2)
