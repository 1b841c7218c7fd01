from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, quickstart_tokenizer, tiny_llama

from policy.adapters import add_lora
from policy.errors import ModelError
from policy.language_model import (
    LanguageModel,
    choose_device,
    disable_dropout,
    load_language_model,
    load_tokenizer,
    save_checkpoint,
)
from policy.special_tokens import check_special_tokens

# peft asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def save_with_pad(directory: Path, pad_token: str | None, **shape: Any) -> Path:
    """A checkpoint whose tokenizer pads with `pad_token`."""
    tokenizer = byte_tokenizer(pad_token=pad_token)
    save_checkpoint(tiny_llama(tokenizer, **shape), tokenizer, directory)
    return directory


@pytest.mark.parametrize(
    "pad_token, state", [(None, "has no padding token"), ("<|im_end|>", r"pads with its EOS '<\|im_end\|>'")]
)
def test_a_tokenizer_without_padding_of_its_own_is_refused_with_the_cure(
    tmp_path: Path, pad_token: str | None, state: str
) -> None:
    source = save_with_pad(tmp_path, pad_token)
    with pytest.raises(ModelError, match=rf"^the tokenizer of '.*' {state}, .* set sft.pad_token .*\.$"):
        load_language_model(source, CPU)
    with pytest.raises(ModelError, match=r"sft\.pad_token"):  # naming EOS once more is no cure
        load_language_model(source, CPU, "<|im_end|>")


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ModelError, match=r"of 'here' has no EOS token"):
        check_special_tokens(byte_tokenizer(eos_token=None), "here")


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_padding_token_gets_a_row_and_changes_no_other_logit(tmp_path: Path, tied: bool) -> None:
    source = save_with_pad(tmp_path, "<|im_end|>", tie_word_embeddings=tied)
    before = logits_of(tiny_llama(byte_tokenizer(pad_token="<|im_end|>"), tie_word_embeddings=tied))
    torch.manual_seed(1)
    model, tokenizer = load_language_model(source, CPU, "<|new|>")
    old = before.shape[-1]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.pad_token) == (old + 1, old, "<|new|>")
    assert model.config.pad_token_id == old and model.config.vocab_size == old + 1
    after = logits_of(model)
    torch.testing.assert_close(after[..., :old], before)  # a wider matrix product may round otherwise
    # No random token: a policy that could draw its padding as likely as a word would.
    probabilities = after.softmax(-1)
    assert (probabilities[..., old] <= probabilities[..., :old].mean(-1)).all()
    torch.manual_seed(2)
    assert torch.equal(logits_of(load_language_model(source, CPU, "<|new|>").model), after)


def test_a_padding_token_the_vocabulary_has_adds_nothing(tmp_path: Path) -> None:
    source = save_with_pad(tmp_path, "<|im_end|>")
    before = tiny_llama(byte_tokenizer(pad_token="<|im_end|>"))
    model, tokenizer = load_language_model(source, CPU, "<|endoftext|>")
    assert len(tokenizer) == len(byte_tokenizer()) == model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.get_vocab()["<|endoftext|>"]
    assert torch.equal(logits_of(model), logits_of(before))


@pytest.mark.parametrize("pad_token", ["<|new|>", "<|endoftext|>"])
def test_eos_learns_again_once_it_is_no_longer_the_padding(tmp_path: Path, pad_token: str) -> None:
    model, tokenizer = load_language_model(save_with_pad(tmp_path, "<|im_end|>"), CPU, pad_token)
    model(torch.tensor([[5, tokenizer.eos_token_id, 6]])).logits[0, -1, 0].backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().sum() > 0


def test_a_model_with_spare_rows_for_a_new_padding_token_keeps_its_size(tmp_path: Path) -> None:
    spare = len(byte_tokenizer()) + 24
    source = save_with_pad(tmp_path, None, vocab_size=spare)
    model, tokenizer = load_language_model(source, CPU, "<|new|>")
    assert model.get_input_embeddings().num_embeddings == spare > tokenizer.pad_token_id


@pytest.mark.parametrize(
    "source, line",
    [
        ("/nowhere/model", r"^no language model at '/nowhere/model': give a directory .*\.$"),
        ("./nowhere", r"^no language model at './nowhere': give a directory .*\.$"),
        (
            "some-owner/some-model",
            r"^'some-owner/some-model' is not a directory in .* \(HF_HUB_OFFLINE is set\).* --local-dir .*\.$",
        ),
    ],
)
def test_a_model_that_is_not_there_is_one_line_with_the_cure(source: str, line: str) -> None:
    with pytest.raises(ModelError, match=line.replace("language model", "tokenizer")) as error:
        load_language_model(source, CPU)
    assert "\n" not in str(error.value)


def test_a_directory_that_is_no_model_is_one_line(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_language_model(tmp_path, CPU)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    for _ in ("cut short", "missing"):
        with pytest.raises(ModelError, match=r"^cannot load the language model in '.*broken': .+") as error:
            load_language_model(broken, CPU)
        assert "\n" not in str(error.value)
        weights.unlink(missing_ok=True)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"^cannot load the .* in '.*broken': .+"):
        load_language_model(broken, CPU)


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_no_language_model(tmp_path: Path, tied: bool) -> None:
    from reward.scalar_model import from_language_model

    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer, tie_word_embeddings=tied), tokenizer, tmp_path / "base")
    save_checkpoint(from_language_model(tmp_path / "base", CPU, 0), tokenizer, tmp_path / "reward")
    with pytest.raises(ModelError, match=r"^'.*reward' is a reward model, which cannot .*; give a language model\.$"):
        load_language_model(tmp_path / "reward", CPU)


def test_a_checkpoint_without_its_head_is_no_language_model(tmp_path: Path, tiny: LanguageModel) -> None:
    save_checkpoint(tiny.model, tiny.tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"^'.*' lacks weights of a language model: lm_head\.weight"):
        load_language_model(tmp_path, CPU)


def test_a_saved_checkpoint_reloads_to_the_same_logits_tokens_and_template(tmp_path: Path, tiny: LanguageModel) -> None:
    save_checkpoint(tiny.model, tiny.tokenizer, tmp_path)
    model, tokenizer = load_language_model(tmp_path, CPU)
    assert torch.equal(logits_of(model), logits_of(tiny.model))
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
    assert tokenizer.padding_side == load_tokenizer(tmp_path).padding_side == "left"
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in tmp_path.iterdir())


def test_a_published_checkpoint_names_its_special_tokens_and_has_no_sampling_habits(tmp_path: Path) -> None:
    source = save_with_pad(tmp_path / "base", "<|pad|>")
    habits = {"do_sample": True, "temperature": 0.3, "top_p": 0.8, "repetition_penalty": 1.3, "eos_token_id": 77}
    (source / "generation_config.json").write_text(json.dumps(habits))
    model, tokenizer = load_language_model(source, CPU)
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        saved = json.loads((tmp_path / "saved" / name).read_text())
        assert (saved["eos_token_id"], saved["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert not saved.get("do_sample") and not {"temperature", "top_p", "repetition_penalty"} & saved.keys()


@pytest.mark.parametrize("targets", ["all-linear", "q_proj, v_proj"])
def test_only_adapters_train_and_merging_them_keeps_the_adapted_logits(tiny_base: Path, targets: str) -> None:
    # In float64: how far float32's rounding moves the sum depends on the processor.
    base = load_language_model(tiny_base, CPU).model.double()
    before = logits_of(base)
    adapted = add_lora(base, 2, 4.0, targets, "CAUSAL_LM")
    trainable = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert torch.equal(logits_of(adapted), before)  # the second factor starts at zero
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainable.values():
            weight.normal_(0, 0.3, generator=rng)
    after = logits_of(adapted)
    assert (after - before).abs().max() > 0.1
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), after, atol=1e-12, rtol=1e-10)
    assert not any("lora_" in name for name, _ in merged.named_parameters())


def test_a_reward_models_adapters_leave_its_head_trainable(tiny_base: Path) -> None:
    from reward.scalar_model import from_language_model

    model = add_lora(from_language_model(tiny_base, CPU, 0), 2, 4.0, "all-linear", "SEQ_CLS")
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    heads = [name for name in trainable if "lora_" not in name]
    assert len(heads) == 1 and ".score." in heads[0]
    assert not any(".score." in name for name in trainable if "lora_" in name)


def test_lora_targets_the_model_does_not_have_are_one_line(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"^lora\.targets 'c_attn' does not fit this model: .+") as error:
        add_lora(load_language_model(tiny_base, CPU).model, 2, 4.0, "c_attn", "CAUSAL_LM")
    assert "\n" not in str(error.value)


def test_dropout_off_makes_training_mode_repeat_itself() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).train()
    disable_dropout(net)
    x = torch.ones(3, 4)
    assert torch.equal(net(x), net(x))


def test_the_device_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == torch.device(device)
    with pytest.raises(ModelError, match="set device to 'auto' or 'cpu'"):
        choose_device("cuda")
