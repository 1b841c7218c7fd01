"""Encoder-decoder models: encoding, loss, publishing, and the stages that cannot take one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import WORLD, job, small_recipe, write_recipe
from tiny_models import quickstart_tokenizer, tiny_t5
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

from data_schema import Demonstration, Message, Source, load_all
from pipeline.__main__ import main
from pipeline.recipe import load_recipe
from policy.errors import ModelError
from policy.language_model import is_encoder_decoder, load_language_model, save_checkpoint
from policy.seq2seq import NO_LABEL, collate_pairs, encode_pairs, load_seq2seq_model, set_seq2seq_template
from reward.scalar_model import from_language_model, load_scalar_model
from stages.errors import ConfigError
from stages.job import keep_back
from stages.settings import LoraConfig, OptimizerConfig
from stages.sft import stage as sft
from stages.sft.settings import SftConfig

CPU = torch.device("cpu")
DEMONSTRATIONS = Source(f"{WORLD}:demonstrations", limit=120)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "t5"
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_t5(tokenizer), tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of such a model transformers would load the decoder alone, without a word."""
    directory = tmp_path_factory.mktemp("models") / "bart"
    tokenizer = quickstart_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    more: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "forced_eos_token_id": None}
    more["decoder_start_token_id"] = tokenizer.eos_token_id
    config = BartConfig(vocab_size=len(tokenizer), **shape, **heads, **ends, **more)
    save_checkpoint(BartForConditionalGeneration(config), tokenizer, directory)
    return directory


def config_of(base: Path, **changes: Any) -> SftConfig:
    config = SftConfig(
        data=[DEMONSTRATIONS],
        base_model=str(base),
        template="quickstart",
        batch_size=16,
        held_out=0.2,
        max_length=64,
        device="cpu",
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    return replace(config, **changes)


def talk(*turns: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_prompt_goes_to_the_encoder_and_the_last_answer_to_the_decoder_both_with_eos() -> None:
    tokenizer = quickstart_tokenizer()
    one, two = encode_pairs(tokenizer, [talk("sort : fox dog", "dog fox ."), talk("fox", "owl .", "red", "hen .")])
    assert tokenizer.decode(one.prompt) == "<user> sort : fox dog <assistant> <eos>"
    assert tokenizer.decode(one.answer) == "dog fox . <eos>"
    assert tokenizer.decode(two.prompt) == "<user> fox <assistant> owl . <eos> <user> red <assistant> <eos>"
    assert tokenizer.decode(two.answer) == "hen . <eos>"


def test_special_tokens_that_the_tokenizer_adds_itself_stand_there_once() -> None:
    tokenizer = quickstart_tokenizer()
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokenizer.bos_token = tokenizer.pad_token  # the vocabulary has no other one to spare
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", pad), ("<eos>", eos)]
    )
    assert tokenizer("fox")["input_ids"][0] == pad
    set_seq2seq_template(tokenizer, "plain")
    pair = encode_pairs(tokenizer, [talk("fox owl", "dog")])[0]
    assert pair.prompt == [pad, *tokenizer("fox owl", add_special_tokens=False)["input_ids"], eos]
    assert pair.answer == [pad, *tokenizer("dog", add_special_tokens=False)["input_ids"], eos]


def test_an_answer_ends_at_its_first_eos_also_where_its_text_spells_it() -> None:
    tokenizer = quickstart_tokenizer()
    assert tokenizer.decode(encode_pairs(tokenizer, [talk("fox", "owl <eos> dog")])[0].answer) == "owl <eos>"


def test_the_loss_is_that_of_the_model_itself_whatever_the_padding(t5: Path) -> None:
    model, tokenizer = load_seq2seq_model(t5, CPU)
    model.eval()
    pairs = encode_pairs(
        tokenizer, [talk("sort : fox dog", "dog fox ."), talk("fox", "owl"), talk("a b c", "red hen .")]
    )
    from policy.seq2seq import answer_token_logprobs

    batch = collate_pairs(model, [pair.prompt for pair in pairs], [pair.answer for pair in pairs])
    with torch.no_grad():
        together = -answer_token_logprobs(model(**batch.inputs(CPU)).logits, batch.answers).sum(1)
        for pair, found in zip(pairs, together, strict=True):
            labels = torch.tensor([pair.answer])
            plain = model(input_ids=torch.tensor([pair.prompt]), labels=labels).loss * labels.numel()
            assert found == pytest.approx(plain.item(), rel=1e-4)
    assert (batch.answers == NO_LABEL).any()


@pytest.fixture(scope="module")
def tuned(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[dict[str, float]]]:
    """-> (published directory, the stage's result, what was logged)."""
    given = job(tmp_path_factory.mktemp("tuned"))
    result = sft.run(config_of(t5, epochs=4), given)
    return given.output, result, given.tracker.records


def test_what_is_published_opens_with_transformers_and_has_learned(tuned: Any, t5: Path) -> None:
    directory, result, records = tuned
    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == quickstart_tokenizer().chat_template
    assert (weights(model) - weights(AutoModelForSeq2SeqLM.from_pretrained(t5))).abs().max() > 1e-2
    losses = [record["sft/loss"] for record in records if "sft/loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert result.metrics["held_out_loss"] < losses[0]
    assert result.metrics["template"] == "quickstart/1"


def test_the_held_out_loss_is_the_cross_entropy_of_the_published_model(tuned: Any) -> None:
    directory, result, _ = tuned
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    _, held_out = keep_back(load_all([DEMONSTRATIONS], Demonstration, 0), 0.2, 0)
    total, count = 0.0, 0
    for pair in encode_pairs(tokenizer, [record.messages for record in held_out]):
        labels = torch.tensor([pair.answer])
        with torch.no_grad():
            total += model(input_ids=torch.tensor([pair.prompt]), labels=labels).loss.item() * labels.numel()
        count += labels.numel()
    assert result.metrics["held_out_tokens"] == count
    assert result.metrics["held_out_loss"] == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_change_memory_and_not_the_weights(t5: Path, tmp_path: Path) -> None:
    found = []
    for micro_batch in (0, 1):
        data = [replace(DEMONSTRATIONS, limit=8)]
        changes = {"data": data, "held_out": 0.0, "batch_size": 8, "micro_batch_size": micro_batch}
        sft.run(config_of(t5, **changes), job(tmp_path / str(micro_batch)))
        found.append(weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / str(micro_batch) / "output")))
    assert (found[0] - weights(AutoModelForSeq2SeqLM.from_pretrained(t5))).abs().max() > 1e-3
    # Adam turns a gradient's rounding into a visible step where it is almost 0; elsewhere nothing may differ.
    assert ((found[0] - found[1]).abs() < 1e-4).double().mean() > 0.99


def test_adapters_are_merged_into_what_is_published(t5: Path, tmp_path: Path) -> None:
    sft.run(config_of(t5, data=[replace(DEMONSTRATIONS, limit=40)], lora=LoraConfig(rank=4)), job(tmp_path))
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (weights(model) - weights(AutoModelForSeq2SeqLM.from_pretrained(t5))).abs().max() > 1e-4


@pytest.mark.parametrize(
    "setting",
    [
        {"select": "held_out_loss"},
        {"pretraining_data": [Source("t.jsonl")]},
        {"quantization": "nf4", "lora": LoraConfig()},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_is_for_decoders_is_refused_in_one_line(t5: Path, tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"sft.{next(iter(setting))} is for decoder-only models"):
        sft.run(config_of(t5, **setting), job(tmp_path))


def test_checkpointing_changes_memory_and_not_what_is_learned(t5: Path, tmp_path: Path) -> None:
    losses = []
    for on in (False, True):
        result = sft.run(config_of(t5, gradient_checkpointing=on, epochs=0.5), job(tmp_path / str(on)))
        losses.append(result.metrics["held_out_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_residual_dropout_is_refused_in_one_line(t5: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"residual_dropout is 0\.2.*dropout_rate"):
        sft.run(config_of(t5, residual_dropout=0.2), job(tmp_path))


def test_where_a_decoder_is_wanted_an_encoder_decoder_is_refused(t5: Path, bart: Path) -> None:
    assert is_encoder_decoder(t5) and is_encoder_decoder(bart)
    for refused in (t5, bart):
        for load in (
            lambda path: load_language_model(path, CPU),
            lambda path: from_language_model(path, CPU, 0),
            lambda path: load_scalar_model(path, CPU),
        ):
            with pytest.raises(ModelError, match="an encoder-decoder, which only sft and evaluate-tasks acc") as caught:
                load(refused)
            assert "\n" not in str(caught.value)


def complaint(path: Path, root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words[:1], "--config", str(path), "--root", str(root), *words[1:]]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("triptych: ")
    return told


def test_a_recipe_that_goes_on_after_sft_is_refused_before_anything_runs(
    t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "small.yaml", small_recipe(t5))
    assert "comparisons cannot start from" in complaint(path, tmp_path / "out", capsys, "run")
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("stage", ["reward-model", "ppo"])
def test_a_stage_refuses_one_that_it_is_given_by_its_directory(
    t5: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    path = write_recipe(tmp_path / "small.yaml", small_recipe(small_base))
    section = stage.replace("-", "_")
    told = complaint(path, tmp_path / "out", capsys, stage, f"--{section}.sft", str(t5))
    assert f"{section} cannot start from '{t5}', which is an encoder-decoder" in told


def test_a_recipe_of_sft_alone_tunes_one(t5: Path, tmp_path: Path) -> None:
    later = {"comparisons": ..., "reward_model": ..., "ppo": ..., "evaluate": ...}
    path = write_recipe(tmp_path / "small.yaml", small_recipe(t5), **later, sft__data__limit=60)
    assert load_recipe(path).ppo is None
    assert main(["run", str(path), "--root", str(tmp_path / "out")]) == 0
    published = next((tmp_path / "out" / "store" / "checkpoints").iterdir())
    assert type(AutoModelForSeq2SeqLM.from_pretrained(published)).__name__ == "T5ForConditionalGeneration"


@pytest.mark.parametrize(
    ("left_out", "parts"),
    [
        ({"reward_model": ..., "evaluate": ...}, "ppo needs a reward model"),
        ({"ppo": ...}, "evaluate compares SFT with PPO"),
    ],
)
def test_a_recipe_must_hold_what_its_stages_read(tmp_path: Path, left_out: dict[str, Any], parts: str) -> None:
    path = write_recipe(tmp_path / "small.yaml", small_recipe(Path("base")), **left_out)
    with pytest.raises(ConfigError, match=parts):
        load_recipe(path)
