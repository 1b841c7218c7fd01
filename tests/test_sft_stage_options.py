"""SFT's options (checkpointing, 4-bit bases, pretraining text, candidates), and what is learned of dialogues."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job, small_recipe, write_recipe
from test_sft_stage import gradient_of_one_step, train, weights, written
from tiny_models import quickstart_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from data_schema import Demonstration, Document, Message, Prompt, load_all, read_records
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from policy.adapters import add_lora
from policy.errors import ModelError
from policy.language_model import load_tokenizer
from policy.memory import quantized
from policy.memory.checkpointing import checkpointed
from policy.pretraining import pack_documents
from policy.reading.states import states_of_sequences
from policy.reading.ways import reads_packed
from stages.errors import ConfigError
from stages.settings import LoraConfig, OptimizerConfig
from stages.sft import stage as sft
from stages.sft.candidates import PROMPTS, candidate_steps, read_index
from stages.sft.settings import SftConfig
from stages.sft.stage import IGNORED, PackingCollator, encode_records
from stages.sft.trainer import MixedBatches

TURNS = [("echo this : fox", "fox ."), ("sort these words : owl fig", "fig owl ."), ("echo this : red", "red .")]


def dialogue(name: str, turns: list[tuple[str, str]]) -> Demonstration:
    messages = [m for asked, said in turns for m in (Message("user", asked), Message("assistant", said))]
    return Demonstration(name, "test", tuple(messages))


@pytest.mark.parametrize("packed", [True, False])
def test_of_several_turns_every_answer_is_learned_and_no_prompt_packed_or_not(chain: Chain, packed: bool) -> None:
    """By the words themselves: what is learned of a batch is each answer and its end, once per turn, and no more."""
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    records = [dialogue("a", TURNS), dialogue("b", TURNS[:1]), dialogue("c", TURNS[1:])]
    rows, dropped = encode_records(records, tokenizer, 64)
    batch = PackingCollator(tokenizer.pad_token_id, packed)([rows[i] for i in range(3)])
    assert dropped == 0 and len(batch["input_ids"]) == (2 if packed else 3)
    learned = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    said = tokenizer.decode(batch["labels"][learned]).split("<eos>")
    answers = [answer for turns in (TURNS, TURNS[:1], TURNS[1:]) for _, answer in turns]
    assert sorted(text.strip() for text in said) == sorted(["", *answers])


def test_the_gradient_of_packed_dialogues_is_that_of_their_answers_alone(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against cross-entropy written out by hand, the turns' answers found by the template's own markers."""
    tmp_path.joinpath("rows").mkdir()
    path = tmp_path / "rows" / "dialogues.jsonl"
    dialogues = [TURNS, TURNS[:1], TURNS[1:], TURNS[:2]]
    rows = [
        {
            "messages": [
                m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})
            ]
        }
        for turns in dialogues
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gradient_of_one_step(chain, tmp_path / "run", monkeypatch, data=[Source(str(path))], batch_size=4)

    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    model = AutoModelForCausalLM.from_pretrained(chain.base)
    begin, end = tokenizer.convert_tokens_to_ids("<assistant>"), tokenizer.eos_token_id
    nats, n = torch.zeros(()), 0
    for turns in dialogues:
        text = " ".join(f"<user> {q} <assistant> {a} <eos>" for q, a in turns)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        answering = False
        for place, token in enumerate(ids):
            if answering:
                nats, n = nats - logprobs[place - 1, token], n + 1
            answering = (answering or token == begin) and token != end
    (nats / n).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["whole", "lora"])
def test_gradient_checkpointing_changes_memory_and_not_the_gradient(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None
) -> None:
    """Of packed rows; memory by the bytes that autograd keeps for the backward pass."""
    rows = [("echo this : fox", "fox ."), ("echo this : owl saw", "owl saw " * 9), ("echo this : fig", "fig .")]
    data = written(tmp_path / "rows", rows)
    kept: dict[bool, int] = {}
    gradients = []
    for on in (False, True):
        sizes: dict[int, int] = {}

        def count(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        settings = {"data": data, "batch_size": 3, "lora": lora, "gradient_checkpointing": on}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            gradients.append(gradient_of_one_step(chain, tmp_path / str(on), monkeypatch, **settings))
        kept[on] = sum(sizes.values())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
    assert kept[True] < 0.8 * kept[False]


def test_checkpointing_acts_in_evaluation_mode_and_is_gone_afterwards(tiny_base: Path) -> None:
    """As PPO needs it: the gradient of a rollout's states is the same, and sampling keeps its cache."""
    ids, lengths = torch.arange(5, 25), torch.tensor([9, 4, 7])
    gradients, passes = [], []
    for on in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
        calls: list[int] = []
        reads_packed(model)
        model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with checkpointed(on, model):
            states = states_of_sequences(model, ids, lengths, lengths - 3, lengths)
            assert len(calls) == 1 and not model.model.layers[0].training
            states.square().sum().backward()
        passes.append(len(calls))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert model(ids[None], use_cache=True).past_key_values.get_seq_length() == 20
        assert "forward" not in vars(model.model.layers[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    assert passes == [1, 2]


def test_ppo_and_the_reward_model_learn_the_same_with_checkpointing(chain: Chain, tmp_path: Path) -> None:
    from stages.ppo import stage as ppo
    from stages.reward_model import stage as reward_model

    recipe = load_recipe(chain.path)
    assert recipe.ppo is not None and recipe.reward_model is not None
    for stage, given in ((reward_model, recipe.reward_model), (ppo, replace(recipe.ppo, iterations=1, monitor=None))):
        parents = {role: chain.checkpoint(role) for role in ("sft", "comparisons", "reward_model")}
        plain = job(tmp_path / stage.__name__ / "plain", parents)
        stage.run(given, plain)
        other = job(tmp_path / stage.__name__ / "checkpointed", parents)
        stage.run(replace(given, gradient_checkpointing=True), other)
        for first, second in zip(plain.tracker.records, other.tracker.records, strict=True):
            assert second == pytest.approx(first, rel=1e-3, abs=1e-4)


def test_a_model_without_layers_to_compute_again_is_refused() -> None:
    with checkpointed(False, torch.nn.Linear(2, 2)):
        pass
    with (
        pytest.raises(ModelError, match="set gradient_checkpointing to false"),
        checkpointed(True, torch.nn.Linear(2, 2)),
    ):
        pass


@pytest.mark.parametrize("share, batch", [(0.1, 16), (0.1, 32), (0.25, 8), (0.5, 3)])
def test_the_share_of_text_holds_in_every_batch_and_over_the_run(share: float, batch: int) -> None:
    steps, n, texts = 40, 50, 7
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 30, (n + texts,), generator=rng).tolist()

    def order(seed: int) -> list[int]:
        return list(MixedBatches(lengths, n, batch, steps, share, seed))

    rows = order(0)
    assert rows == order(0) != order(1) and len(rows) == steps * batch
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    counts = [sum(row >= n for row in each) for each in batches]
    assert all(abs(count - share * batch) < 1 for count in counts)
    assert sum(counts) == int(share * batch * steps)
    drawn = Counter(rows)  # without replacement: none is drawn twice more often than another
    for kind in (range(n), range(n, n + texts)):
        assert max(drawn[row] for row in kind) - min(drawn[row] for row in kind) <= 1
    assert all([lengths[row] for row in each] == sorted(lengths[row] for row in each) for each in batches)


def documents(folder: Path, n: int = 40) -> list[Source]:
    folder.mkdir(exist_ok=True)
    path = folder / "text.jsonl"
    words = ["park", "dog", "saw", "backwards", "repeat"]
    rows = [{"text": " ".join(words[(i * j) % 5] for j in range(1, 6 + i % 4))} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [Source(str(path))]


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_all_tokens_of_the_text_are_learned_beside_the_answers(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    """The gradient is that of one token mean over answers and text, written out by hand; the text's loss is logged."""
    demonstrations = [("echo this : fox", "fox ."), ("echo this : owl saw", "owl saw .")]
    data, text = written(tmp_path / "rows", demonstrations), documents(tmp_path / "text", 4)
    settings: dict[str, Any] = {
        "data": data,
        "pretraining_data": text,
        "pretraining_share": 0.5,
        "pretraining_length": 12,
    }
    settings["micro_batch_size"] = micro_batch
    found = gradient_of_one_step(chain, tmp_path / "run", monkeypatch, batch_size=4, **settings)

    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    rows = pack_documents(tokenizer, load_all(text, Document, 0), 12)
    assert len(rows) == 2  # so one step reads each once
    losses = []
    model = AutoModelForCausalLM.from_pretrained(chain.base)
    for row in rows.long():
        losses.append(torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none"))
    text_loss = torch.cat(losses).mean().item()
    for prompt, answer in demonstrations:
        ids = tokenizer(f"<user> {prompt} <assistant> {answer} <eos>", add_special_tokens=False)["input_ids"]
        n = len(answer.split()) + 1
        logits = model(torch.tensor([ids])).logits[0, -n - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-n:]), reduction="none"))
    torch.cat(losses).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)

    _, result, records = train(chain, tmp_path / "again", held_out=0.0, batch_size=4, **settings)
    (logged,) = [record["sft/pretraining_loss"] for record in records if "sft/pretraining_loss" in record]
    assert logged == pytest.approx(text_loss, rel=1e-4)
    assert result.data["pretraining_data"]["rows"] == 2 == result.data["pretraining_data"]["rows_read"]
    assert result.data["pretraining_data"]["records"] == 4


def test_the_demonstrations_are_read_as_often_as_epochs_say_whatever_is_mixed_in(chain: Chain, tmp_path: Path) -> None:
    data = written(tmp_path / "rows", [(f"echo this : {w}", f"{w} .") for w in ("fox", "owl", "saw", "fig")] * 3)
    text = documents(tmp_path / "text")
    _, plain, _ = train(chain, tmp_path / "plain", data=data, held_out=0.0, batch_size=4, epochs=2)
    mixed = {"pretraining_data": text, "pretraining_share": 0.25, "pretraining_length": 12}
    first, result, _ = train(chain, tmp_path / "a", data=data, held_out=0.0, batch_size=4, epochs=2, **mixed)
    again, _, _ = train(chain, tmp_path / "b", data=data, held_out=0.0, batch_size=4, epochs=2, **mixed)
    assert plain.metrics["steps"] == 6 and result.metrics["steps"] == 8  # 24 demonstrations, 4 or 3 a step
    assert result.data["pretraining_data"]["rows_read"] == 8
    assert torch.equal(weights(first), weights(again))


def test_candidates_are_evenly_spaced_and_end_with_the_last(chain: Chain) -> None:
    config = load_recipe(chain.path).sft
    assert candidate_steps(config, 100) == []
    config = replace(config, select="held_out_loss", checkpoints=4)
    assert candidate_steps(config, 100) == [25, 50, 75, 100]
    assert candidate_steps(config, 10) == [2, 5, 8, 10]
    assert candidate_steps(config, 2) == [1, 2]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["whole", "lora"])
def test_the_lowest_held_out_loss_chooses_what_is_published(
    chain: Chain, tmp_path: Path, lora: LoraConfig | None
) -> None:
    """Answers at random make a model that learns its few demonstrations by heart worse on others of them."""
    words = ["fox", "owl", "saw", "fig", "red", "hen", "lake", "dog"]
    rows = [
        (f"echo this : {a} {b}", words[(5 * i + 3 * j) % 8]) for i, a in enumerate(words) for j, b in enumerate(words)
    ]
    data = written(tmp_path / "rows", rows)
    fast = OptimizerConfig(learning_rate=2e-2)
    settings = {"data": data, "held_out": 0.4, "batch_size": 8, "epochs": 8, "optimizer": fast, "lora": lora}
    last, plain, _ = train(chain, tmp_path / "last", **settings)
    settings |= {"select": "held_out_loss", "checkpoints": 5}
    model, result, records = train(chain, tmp_path / "chosen", **settings)
    table = result.metrics["candidates"]
    assert [row["step"] for row in table] == candidate_steps(
        replace(load_recipe(chain.path).sft, **settings), plain.metrics["steps"]
    )
    best = min(table, key=lambda row: row["held_out_loss"])
    assert result.metrics["selected_step"] == best["step"] < plain.metrics["steps"]
    assert result.metrics["held_out_loss"] == best["held_out_loss"] < plain.metrics["held_out_loss"]
    assert not torch.equal(weights(model), weights(last))
    # Keeping candidates changes nothing of the run: its last one is what would have been published.
    folder = tmp_path / "chosen" / "candidates" / f"step-{plain.metrics['steps']}"
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(folder)), weights(last))
    assert not (tmp_path / "chosen" / "output" / "candidates").exists()
    curve = [record["step"] for record in records if "sft/held_out_loss" in record]
    assert curve == [row["step"] for row in table]


def test_with_selection_by_reward_model_the_last_is_published_with_the_others_and_the_prompts(
    chain: Chain, tmp_path: Path
) -> None:
    from stages.job import prompt_hash, read_seen_prompts

    last, plain, _ = train(chain, tmp_path / "plain", epochs=0.5)
    model, result, _ = train(chain, tmp_path / "run", epochs=0.5, select="reward_model", checkpoints=3)
    assert torch.equal(weights(model), weights(last))
    index = read_index(tmp_path / "run" / "output")
    assert list(index) == candidate_steps(
        SftConfig(data=[], base_model="", select="reward_model", checkpoints=3), plain.metrics["steps"]
    )
    assert index[result.metrics["steps"]] == tmp_path / "run" / "output"
    for directory in index.values():
        assert list(directory.glob("*.safetensors")) and not list(directory.rglob("*.bin"))
    prompts = list(read_records(tmp_path / "run" / "output" / PROMPTS, Prompt))
    seen = read_seen_prompts([tmp_path / "run" / "output"])
    assert prompts and not seen & {prompt_hash(prompt) for prompt in prompts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sft__quantization": "nf4"}, "set sft.lora, or leave quantization out"),
        ({"sft__select": "held_out_loss", "sft__held_out": 0.0}, "sft.held_out is 0; raise sft.held_out"),
        ({"sft__select": "reward_model", "sft__held_out": 0.0}, "raise sft.held_out, or set select.prompts"),
        (
            {"sft__select": "reward_model", "reward_model": ..., "ppo": ..., "evaluate": ...},
            "add a section reward_model",
        ),
        ({"sft__pretraining_share": 1.0}, "sft.pretraining_share is 1"),
    ],
)
def test_a_setting_that_cannot_work_is_told_with_its_cure(
    small_base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_recipe(tmp_path / "r.yaml", small_recipe(small_base), **change)
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_without_the_library_a_4_bit_base_is_refused_with_the_cure(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"bitsandbytes, which is not installed: run pip install -e '.\[qlora\]'"):
        train(chain, tmp_path, lora=LoraConfig(rank=4), quantization="nf4")


@pytest.fixture(scope="module")
def adapted() -> Any:
    """A 4-bit model under adapters that are not 0, and its tokenizer."""
    pytest.importorskip("bitsandbytes")
    tokenizer = quickstart_tokenizer()
    model = quantized.quantize_nf4(tiny_llama(tokenizer, hidden_size=64), torch.device("cpu"))
    adapters = add_lora(model, 4, 8.0, "q_proj,down_proj", "CAUSAL_LM").eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)
    return adapters, tokenizer


def test_the_whole_model_made_of_a_4_bit_one_is_plain_and_answers_alike(adapted: Any, tmp_path: Path) -> None:
    from policy.language_model import save_checkpoint
    from stages.sft.candidates import whole_model

    adapters, tokenizer = adapted
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = adapters(ids).logits
        save_checkpoint(whole_model(adapters, keep_adapters=True), tokenizer, tmp_path)
        assert torch.equal(adapters(ids).logits, expected)  # the one in training is as it was
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    plain = tiny_llama(tokenizer, hidden_size=64)
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    # Weights without adapters: sixteen values a block of 64, times the block's scale.
    first = model.model.layers[0].self_attn.k_proj.weight.flatten()[:64]
    assert len(first.unique()) <= 16 and not torch.equal(
        first, plain.model.layers[0].self_attn.k_proj.weight.flatten()[:64]
    )


def test_a_4_bit_base_is_tuned_and_its_held_out_loss_is_the_published_models(chain: Chain, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"lora": LoraConfig(rank=8), "quantization": "nf4", "gradient_checkpointing": True}
    settings |= {"select": "held_out_loss", "checkpoints": 2, "optimizer": OptimizerConfig(1e-2)}
    model, result, records = train(chain, tmp_path, epochs=0.25, **settings)
    losses = [record["sft/loss"] for record in records if "sft/loss" in record]
    assert losses[-1] < losses[0] - 0.1
    config = replace(load_recipe(chain.path).sft, **settings)
    from stages.sft.demonstrations import load_demonstrations

    held_out, _ = encode_records(
        load_demonstrations(config, job(tmp_path)).held_out, load_tokenizer(tmp_path / "output"), 64
    )
    found = sft.held_out_loss(model, held_out, torch.device("cpu"))
    mean = sum(nats for nats, _ in found) / sum(n for _, n in found)
    assert result.metrics["held_out_loss"] == pytest.approx(mean, rel=1e-4)
