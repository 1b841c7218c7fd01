"""Models that a recipe names are looked at before its first stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_recipe import Chain
from test_gate_check import check
from tiny_models import quickstart_tokenizer
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from policy.errors import ModelError
from policy.language_model import save_checkpoint
from stages.errors import ConfigError


def adapter(chain: Chain, directory: Path) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    return directory


def of_stage(stage: str) -> Any:
    return lambda chain, _: chain.checkpoint(stage)


def two_labels(chain: Chain, directory: Path) -> Path:
    shutil.copytree(chain.checkpoint("reward_model"), directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "a", "1": "b"}}))
    return directory


@pytest.mark.parametrize(
    ("setting", "make", "words"),
    [
        ("ppo__sft", of_stage("reward_model"), r"^.* is a reward model, which cannot generate text"),
        ("ppo__sft", adapter, r"^.* is a LoRA adapter"),
        ("ppo__sft", of_stage("evaluate"), r"^.* is the checkpoint of the stage evaluate"),
        ("reward_model__sft", of_stage("reward_model"), r"^.* is a reward model"),
        ("comparisons__sft", of_stage("comparisons"), r"^.* is the checkpoint of the stage comparis"),
        ("ppo__reward_model", of_stage("sft"), r"^.* is a LlamaForCausalLM, not a reward model"),
        ("ppo__reward_model", of_stage("ppo"), r"^.* not a reward model"),
        ("ppo__reward_model", adapter, r"^.* is a LoRA adapter"),
        ("ppo__reward_model", two_labels, r"^.* with 2 labels, not a reward model"),
    ],
)
def test_a_model_of_the_wrong_kind_stops_the_run_before_its_first_stage(
    chain: Chain, tmp_path: Path, setting: str, make: Any, words: str
) -> None:
    with pytest.raises((ConfigError, ModelError), match=words) as error:
        check(tmp_path, chain.base, dry_run=True, **{setting: str(make(chain, tmp_path / "named"))})
    assert "\n" not in str(error.value)


def test_a_reward_part_of_the_wrong_kind_stops_the_run_before_its_first_stage(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ModelError), match="not a reward model"):
        check(tmp_path, chain.base, dry_run=True, ppo__rewards=[{"model": str(chain.checkpoint("sft"))}])


def test_a_reward_model_of_another_template_stops_the_run_before_its_first_stage(chain: Chain, tmp_path: Path) -> None:
    other = Path(shutil.copytree(chain.checkpoint("reward_model"), tmp_path / "other"))
    check(tmp_path, chain.base, dry_run=True, ppo__reward_model=str(other))
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ConfigError, match=r"^ppo\.reward_model: the chat template of the reward model"):
        check(tmp_path, chain.base, dry_run=True, ppo__reward_model=str(other))
    crossing = [{"model": str(other), "text_crosses_over": True}]
    check(tmp_path, chain.base, dry_run=True, ppo__rewards=crossing)


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
@pytest.mark.parametrize("targets", ["q_porj", "q_proj,nope", "lm_head", "layers.9.self_attn.q_proj"])
def test_lora_targets_that_no_layer_has_stop_the_run_before_its_first_stage(
    chain: Chain, tmp_path: Path, stage: str, targets: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{stage}\.lora\.targets '{targets}' does not fit this model"):
        check(tmp_path, chain.base, dry_run=True, **{f"{stage}__lora": {"targets": targets}})
    check(tmp_path, chain.base, dry_run=True, **{f"{stage}__lora": {"targets": "q_proj,v_proj"}})


UPPER = ["reward_model", "ppo"]


@pytest.mark.parametrize("stage", UPPER)
@pytest.mark.parametrize("dry_run", [True, False])
def test_more_trainable_layers_than_the_model_has_stop_the_run_before_its_first_stage(
    chain: Chain, tmp_path: Path, stage: str, dry_run: bool
) -> None:
    with pytest.raises(ConfigError, match=rf"^{stage}\.trainable_layers is 2, .* has 2 layers; set it to at most 1"):
        check(tmp_path, chain.base, dry_run=dry_run, **{f"{stage}__trainable_layers": 2})
    check(tmp_path, chain.base, dry_run=dry_run, **{f"{stage}__trainable_layers": 1})


@pytest.mark.parametrize("stage", UPPER)
def test_a_model_that_is_not_the_same_in_two_parts_stops_the_run_before_its_first_stage(
    tmp_path: Path, stage: str
) -> None:
    tokenizer = quickstart_tokenizer()
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=4)
    base = tmp_path / "base"
    save_checkpoint(OpenAIGPTLMHeadModel(config), tokenizer, base)
    with pytest.raises(
        ConfigError, match=rf"^{stage}\.trainable_layers is set, but .* 'openai-gpt', whose upper layers"
    ):
        check(tmp_path, base, dry_run=True, **{f"{stage}__trainable_layers": 1})


@pytest.mark.parametrize("stage", UPPER)
def test_lora_targets_below_the_layers_that_train_stop_the_run_before_its_first_stage(
    chain: Chain, tmp_path: Path, stage: str
) -> None:
    def upper(targets: str) -> None:
        settings = {f"{stage}__trainable_layers": 1, f"{stage}__lora": {"targets": targets}}
        check(tmp_path, chain.base, dry_run=True, **settings)

    with pytest.raises(ConfigError, match=rf"^{stage}\.lora\.targets 'layers\.0\..*' names no layer among the upper 1"):
        upper("layers.0.self_attn.q_proj")
    for named in ("layers.1.self_attn.q_proj", "q_proj", "all-linear"):
        upper(named)
