from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, quickstart_tokenizer, tiny_llama, tiny_t5

from policy.errors import ModelError
from policy.language_model import load_config, load_language_model, load_tokenizer, save_checkpoint
from reward.scalar_model import from_language_model, load_scalar_model

CPU = torch.device("cpu")


def bert(directory: Path, name: str) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    tokenizer = quickstart_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    kind = {"BertForMaskedLM": BertForMaskedLM, "BertModel": BertModel}[name]
    save_files(kind(BertConfig(vocab_size=len(tokenizer), **shape)), directory)


def save_files(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    quickstart_tokenizer().save_pretrained(directory)


def reward_model(directory: Path, labels: int = 1) -> None:
    from transformers import LlamaForSequenceClassification

    config = tiny_llama(quickstart_tokenizer()).config
    config.num_labels = labels
    save_files(LlamaForSequenceClassification(config), directory)


def adapter(directory: Path) -> None:
    quickstart_tokenizer().save_pretrained(directory)
    save_file({"lora_A": torch.zeros(1)}, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))


def sentence_transformer(directory: Path) -> None:
    save_files(tiny_llama(quickstart_tokenizer()), directory)
    (directory / "modules.json").write_text("[]")


def files(*names: str) -> Any:
    def write(directory: Path) -> None:
        for name in names:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"stage": "comparisons"}) if name == "manifest.json" else "{}")

    return write


@pytest.mark.parametrize(
    "make, words",
    [
        (reward_model, r"is a reward model, which cannot generate text; give a language model\."),
        (lambda d: reward_model(d, 3), "is a LlamaForSequenceClassification with 3 labels, not a language model"),
        (lambda d: bert(d, "BertForMaskedLM"), r"is an encoder that fills in masked words \(BertForMaskedLM\)"),
        (sentence_transformer, "is a sentence-transformers model, which turns texts into vectors"),
        (adapter, "is a LoRA adapter over 'owner/base', not a whole .*merge_and_unload"),
        (files("model.Q4_K_M.gguf"), "has no config.json: it holds GGUF weights"),
        (files("manifest.json"), "is the checkpoint of the stage comparisons, which holds no model; give one of sft"),
        (
            files("consolidated.00.pth", "params.json"),
            "in their publisher's own layout; give the same model in Hugging",
        ),
        (files("checkpoint-5/config.json", "checkpoint-20/config.json"), "2 checkpoints; give one of them, .*-20"),
        (files("model/config.json"), "its folder '.*model' has one; give that"),
        (files("tokenizer_config.json", "tokenizer.json"), "it holds only a tokenizer"),
        (files("model_index.json", "unet/x"), "it is an image model"),
        (files("model.nemo"), "it holds a NeMo model"),
        (files(), "has no config.json: it is empty; give the directory of a"),
        (files("notes.txt"), "has no config.json; give the directory of a"),
    ],
)
def test_what_is_no_language_model_is_named_in_one_line(tmp_path: Path, make: Any, words: str) -> None:
    source = tmp_path / "x"
    source.mkdir()
    make(source)
    for load in (load_language_model, lambda source, device: from_language_model(source, device, 0)):
        with pytest.raises(ModelError, match=words) as error:
            load(source, CPU)
        assert "\n" not in str(error.value) and "Error" not in str(error.value)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: save_files(tiny_llama(quickstart_tokenizer()), d), "is a LlamaForCausalLM, not a reward model"),
        (lambda d: reward_model(d, 2), "is a LlamaForSequenceClassification with 2 labels, not a reward model"),
        (lambda d: bert(d, "BertForMaskedLM"), "is an encoder that fills in masked words .*, not a reward model"),
        (lambda d: save_files(tiny_t5(byte_tokenizer()), d), "is an encoder-decoder"),
        (adapter, "is a LoRA adapter"),
        (files("a.gguf"), "holds GGUF weights"),
    ],
)
def test_what_is_no_reward_model_is_named_in_one_line(tmp_path: Path, make: Any, words: str) -> None:
    source = tmp_path / "x"
    source.mkdir()
    make(source)
    with pytest.raises(ModelError, match=words) as error:
        load_scalar_model(source, CPU)
    assert "\n" not in str(error.value)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; give the directory"):
        load_language_model(tmp_path / "model.safetensors", CPU)


def test_a_model_with_weights_of_pytorchs_older_format_opens(tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    model = tiny_llama(tokenizer)
    save_checkpoint(model, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_language_model(tmp_path, CPU).model
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_an_adapter_beside_a_whole_model_is_no_obstacle(tmp_path: Path) -> None:
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer), tokenizer, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    load_config(tmp_path)


def changed(**settings: Any) -> Any:
    def write(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return write


def with_adapter_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(1)}, file)


def without_large_files(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


@pytest.mark.parametrize(
    "change, words",
    [
        (changed(num_hidden_layers=1), r"for more than its config\.json describes \(9, such as model\.layers\.1\."),
        (changed(num_hidden_layers=3), r"lacks weights of a language model: model\.layers\.2\."),
        (changed(vocab_size=50), r"weights of other shapes than its config\.json says; compare vocab_size"),
        (changed(hidden_size=16), r"weights of other shapes than its config\.json says"),
        (
            changed(quantization_config={"quant_method": "gptq", "bits": 4}),
            "quantized by gptq, which cannot be trained",
        ),
        (changed(quantization_config={"quant_method": "awq"}), "quantized by awq, which cannot be trained"),
        (changed(model_type="unheard"), "is of a model type 'unheard' that transformers .* does not know"),
        (with_adapter_weights, "has the weights of adapters among its own .*merge_and_unload"),
        (without_large_files, "model.safetensors is a pointer of git-lfs; run 'git lfs pull' there"),
    ],
)
def test_a_checkpoint_whose_files_do_not_fit_together_is_one_line_with_the_reason(
    tmp_path: Path, tiny_base: Path, change: Any, words: str
) -> None:
    source = Path(shutil.copytree(tiny_base, tmp_path / "x"))
    change(source)
    with pytest.raises(ModelError, match=words) as error:
        load_language_model(source, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "drop, add, words",
    [
        ("score.weight", None, r"lacks weights of a reward model: score\.weight; give"),
        (
            "score.weight",
            "v_head.weight",
            r"lacks weights of a reward model: score\.weight, and has v_head\.weight in its",
        ),
        ("model.layers.0.mlp.up_proj.weight", None, r"lacks weights of a reward model: model\.layers\.0\.mlp\.up_proj"),
        (None, "score.bias", r"has a head that its class in transformers does not read \(score\.bias\)"),
        (None, "model.layers.2.mlp.up_proj.weight", "for more than its config.json describes"),
    ],
)
def test_a_reward_model_whose_weights_do_not_fit_its_class_is_refused(
    tmp_path: Path, drop: str | None, add: str | None, words: str
) -> None:
    reward_model(tmp_path)
    load_scalar_model(tmp_path, CPU)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    dropped = weights.pop(drop) if drop else torch.zeros(1)
    save_file(weights | ({add: dropped} if add else {}), file)
    with pytest.raises(ModelError, match=words):
        load_scalar_model(tmp_path, CPU)


def test_a_language_model_without_all_its_weights_is_no_start_for_a_reward_model(
    tmp_path: Path, tiny_base: Path
) -> None:
    source = Path(shutil.copytree(tiny_base, tmp_path / "x"))
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks weights of a language model: model\.layers\.0\.mlp\.up_proj"):
        from_language_model(source, CPU, 0)


def test_a_padding_id_beyond_the_vocabulary_is_replaced_by_the_tokenizers(tmp_path: Path, tiny_base: Path) -> None:
    source = Path(shutil.copytree(tiny_base, tmp_path / "x"))
    changed(pad_token_id=5000)(source)
    model, tokenizer = load_language_model(source, CPU)
    assert model.config.pad_token_id == tokenizer.pad_token_id < 5000
    assert from_language_model(source, CPU, 0).config.pad_token_id is None


def test_a_config_that_ties_what_is_not_tied_is_corrected(tmp_path: Path, tiny_base: Path) -> None:
    source = Path(shutil.copytree(tiny_base, tmp_path / "x"))
    changed(tie_word_embeddings=True)(source)
    model = load_language_model(source, CPU).model
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_a_models_own_code_is_refused_without_a_question_and_never_run(
    tmp_path: Path, tiny_base: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    source = Path(shutil.copytree(tiny_base, tmp_path / "own"))
    ran = tmp_path / "ran"
    (source / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    path = source / place
    settings = json.loads(path.read_text())
    if place == "config.json":
        settings |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
        settings["auto_map"] = {
            name: f"modeling_own.{kind}"
            for name, kind in (("AutoConfig", "OwnConfig"), ("AutoModelForCausalLM", "OwnForCausalLM"))
        }
    else:
        settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}}
    path.write_text(json.dumps(settings))
    loads = [lambda: load_language_model(source, CPU)]
    if place == "tokenizer_config.json":
        loads += [lambda: load_tokenizer(source)]
    else:
        loads += [lambda: load_config(source), lambda: from_language_model(source, CPU, 0)]
        loads += [lambda: load_scalar_model(source, CPU)]
    for load in loads:
        with pytest.raises(ModelError, match=r"comes with Python code of its own .* triptych does not run") as error:
            load()
        assert "\n" not in str(error.value)
    assert not ran.exists()
