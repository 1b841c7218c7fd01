from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from small_recipe import Chain, job
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_schema import Demonstration, Message
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from policy.language_model import LanguageModel, load_tokenizer
from stages.errors import ConfigError
from stages.settings import LoraConfig, OptimizerConfig
from stages.sft import stage as sft
from stages.sft.settings import SftConfig
from stages.sft.stage import IGNORED, PackingCollator, add_residual_dropout, encode_records

TASKS = [("sort these words : fox dog", "dog fox ."), ("echo this : owl", "owl . happy to help !")]


def config_of(chain: Chain, **changes: Any) -> SftConfig:
    return replace(load_recipe(chain.path).sft, **changes)


def train(chain: Chain, folder: Path, **changes: Any) -> tuple[PreTrainedModel, Any, list[dict[str, float]]]:
    """-> (the published model, the stage's result, what was logged)."""
    given = job(folder)
    result = sft.run(config_of(chain, **changes), given)
    return AutoModelForCausalLM.from_pretrained(folder / "output"), result, given.tracker.records


def written(folder: Path, rows: list[tuple[str, str]]) -> list[Source]:
    folder.mkdir(exist_ok=True)
    path = folder / "demonstrations.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))
    return [Source(str(path))]


def records_of(rows: list[tuple[str, str]]) -> Any:
    messages = [(Message("user", prompt), Message("assistant", answer)) for prompt, answer in rows]
    return [Demonstration(str(i), "test", turns) for i, turns in enumerate(messages)]


def test_the_labels_are_the_answer_and_its_eos_and_nothing_else(chain: Chain) -> None:
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    rows, dropped = encode_records(records_of(TASKS), tokenizer, 64)
    assert dropped == 0
    for row, (prompt, answer) in zip(rows, TASKS, strict=True):
        learned = [token for token in row["labels"] if token != IGNORED]
        assert tokenizer.decode(learned) == f"{answer} <eos>"
        assert row["labels"][-len(learned) :] == learned == row["input_ids"][-len(learned) :]
        assert tokenizer.decode(row["input_ids"][: -len(learned)]).split() == ["<user>", *prompt.split(), "<assistant>"]


def test_a_demonstration_that_is_too_long_is_dropped_and_counted_never_cut(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    rows = [*TASKS * 8, ("echo this : fox", "fox " * 70)]
    kept, dropped = encode_records(records_of(rows), tokenizer, 64)
    assert (len(kept), dropped) == (16, 1)
    _, result, _ = train(chain, tmp_path, data=written(tmp_path, rows), held_out=0.0, batch_size=4)
    assert result.data["data"]["dropped"] == {"too long": 1}
    assert result.data["data"]["records"] == 17
    assert "dropped 1 of 17 demonstrations: longer than 64 tokens" in caplog.text


@pytest.fixture(scope="module")
def one_step(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[Source]]:
    """Weights after a step on a batch of unequal lengths at once, and the data."""
    folder = tmp_path_factory.mktemp("one_step")
    rows = [("echo this : fox", "fox ."), ("echo this : owl saw", "owl saw " * 10), *TASKS]
    data = written(folder, rows)
    model, _, _ = train(chain, folder, data=data, held_out=0.0, batch_size=4)
    return weights(model), data


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_micro_batches_change_memory_and_not_the_weights(
    chain: Chain, one_step: tuple[torch.Tensor, list[Source]], tmp_path: Path
) -> None:
    expected, data = one_step
    model, _, _ = train(chain, tmp_path, data=data, held_out=0.0, batch_size=4, micro_batch_size=1)
    before = weights(AutoModelForCausalLM.from_pretrained(chain.base))
    assert (expected - before).abs().max() > 1e-3
    # Adam turns a gradient's rounding into a visible step where it is almost 0; elsewhere nothing may differ.
    assert ((weights(model) - expected).abs() < 1e-4).double().mean() > 0.99


def test_the_held_out_loss_is_the_cross_entropy_of_the_published_model(chain: Chain, tmp_path: Path) -> None:
    rows = [
        (f"echo this : {a} {b}", f"{a} {b} .") for a in ("fox", "owl", "saw") for b in ("fig", "lake", "red", "hen")
    ]
    data = written(tmp_path, rows)
    model, result, _ = train(chain, tmp_path, data=data, held_out=0.4, batch_size=4)
    from data_schema import load_all
    from stages.job import keep_back

    _, held_out = keep_back(load_all(data, Demonstration, 0), 0.4, 0)
    encoded, _ = encode_records(held_out, load_tokenizer(tmp_path / "output"), 64)
    assert len(encoded) > 0
    losses = []
    for row in encoded:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != IGNORED])
    assert result.metrics["held_out_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert result.metrics["held_out_tokens"] == len(torch.cat(losses))


def test_the_loss_on_held_out_demonstrations_falls(chain: Chain, tmp_path: Path) -> None:
    short = config_of(chain).optimizer
    _, first, _ = train(chain, tmp_path / "short", epochs=0.1, optimizer=replace(short, learning_rate=1e-6))
    _, _, records = train(chain, tmp_path / "long", epochs=0.5)
    (last,) = [record["sft/held_out_loss"] for record in records if "sft/held_out_loss" in record]
    assert last < first.metrics["held_out_loss"] - 1
    losses = [record["sft/loss"] for record in records if "sft/loss" in record]
    assert losses[-1] < losses[0] - 1


def gradient_of_one_step(chain: Chain, folder: Path, patch: pytest.MonkeyPatch, **changes: Any) -> torch.Tensor:
    gradients: list[torch.Tensor] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            gradients.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))

    def watched(parameters: Any, *_: Any) -> Any:
        optimizer = Watching([p for p in parameters if p.requires_grad], lr=0.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    patch.setattr(sft, "make_optimizer", watched)
    train(chain, folder, held_out=0.0, optimizer=OptimizerConfig(max_grad_norm=1e9), **changes)
    (gradient,) = gradients
    return gradient


def test_packing_changes_the_rows_and_not_the_gradient(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch of unequal lengths; over all of them, and in micro-batches."""
    data = written(tmp_path, [("echo this : fox", "fox ."), ("echo this : owl saw", "owl saw " * 9), *TASKS * 2])
    apart = gradient_of_one_step(chain, tmp_path / "apart", monkeypatch, data=data, batch_size=6, packing=False)
    for micro_batch in (0, 3):
        settings = {"data": data, "batch_size": 6, "micro_batch_size": micro_batch}
        packed = gradient_of_one_step(chain, tmp_path / f"packed{micro_batch}", monkeypatch, **settings)
        torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["whole", "lora"])
def test_logits_are_made_of_learned_tokens_alone(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None
) -> None:
    """That the gradient is the answers' is the test of packed dialogues (test_sft_stage_options.py)."""
    made: list[int] = []

    class Counting:
        """TRL's head, and how many states it is given."""

        @staticmethod
        def apply(hidden: torch.Tensor, *others: Any, head: Any = trl.trainer.utils._ChunkedLogProbFunction) -> Any:
            made.append(len(hidden))
            return head.apply(hidden, *others)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Counting)
    train(chain, tmp_path, data=written(tmp_path, TASKS), held_out=0.0, batch_size=2, epochs=1, lora=lora)
    tokenizer = load_tokenizer(tmp_path / "output")
    answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in TASKS]
    assert made == [sum(len(ids) + 1 for ids in answers)]  # and its end


def test_packed_rows_give_each_demonstration_the_logits_it_has_alone(tiny: LanguageModel) -> None:
    lengths = [9, 4, 3, 5, 2, 7]
    rng = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(0, 197, (n,), generator=rng).tolist(), "labels": [7] * n} for n in lengths]
    batch = PackingCollator(0, packed=True)(rows)
    assert batch["input_ids"].shape == (4, 9) and int(batch["n_tokens"]) == sum(lengths)
    with torch.no_grad():
        logits = tiny.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row in rows:
        n, text = len(row["input_ids"]), torch.tensor(row["input_ids"])
        ((at, begin),) = [
            (r, c)
            for r in range(4)
            for c in range(9 - n + 1)
            if torch.equal(batch["input_ids"][r, c : c + n], text)
            and batch["position_ids"][r, c : c + n].tolist() == list(range(n))
        ]
        with torch.no_grad():
            torch.testing.assert_close(
                logits[at, begin : begin + n], tiny.model(text[None]).logits[0], atol=1e-5, rtol=1e-4
            )
        assert batch["labels"][at, begin : begin + n].tolist() == [IGNORED] + [7] * (n - 1)


def test_residual_dropout_acts_in_training_alone(chain: Chain) -> None:
    ids = torch.arange(5, 25)[None]
    model, plain = (AutoModelForCausalLM.from_pretrained(chain.checkpoint("sft")).eval() for _ in range(2))
    add_residual_dropout(model, 0.5)
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
        model.train()
        first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
    assert not torch.allclose(first, second) and not torch.allclose(first, expected)


def test_residual_dropout_leaves_no_trace_in_the_checkpoint(chain: Chain, tmp_path: Path) -> None:
    model, _, _ = train(chain, tmp_path, epochs=0.1, residual_dropout=0.2)
    assert model.state_dict().keys() == AutoModelForCausalLM.from_pretrained(chain.base).state_dict().keys()


def test_with_lora_a_whole_model_is_published_that_moved_by_the_adapters_rank(chain: Chain, tmp_path: Path) -> None:
    model, _, _ = train(chain, tmp_path, epochs=0.2, lora=LoraConfig(rank=4), optimizer=OptimizerConfig(1e-2))
    base = AutoModelForCausalLM.from_pretrained(chain.base)
    assert not list((tmp_path / "output").glob("adapter*"))
    change = model.model.layers[0].self_attn.q_proj.weight - base.model.layers[0].self_attn.q_proj.weight
    assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 4
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_the_prompts_it_saw_are_left_in_the_checkpoint(chain: Chain) -> None:
    from data_schema import load_all
    from stages.job import keep_back, prompt_hash, read_seen_prompts

    train_records, held_out = keep_back(load_all(config_of(chain).data, Demonstration, 0), 0.03, 0)
    seen = read_seen_prompts([chain.checkpoint("sft")])
    assert seen == {prompt_hash(record) for record in train_records}
    assert len(held_out) and not seen & {prompt_hash(record) for record in held_out}


@pytest.mark.parametrize(
    ("rate", "epochs", "words"),
    [(1e30, 1.0, "the loss is not a finite number in step"), (1e39, 1e-9, "weights are not finite after step 1")],
)
def test_training_that_ends_in_no_numbers_publishes_nothing(
    chain: Chain, tmp_path: Path, rate: float, epochs: float, words: str
) -> None:
    optimizer = OptimizerConfig(learning_rate=rate, schedule="constant")
    with pytest.raises(ConfigError, match=f"^sft: .*{words}.*; lower the stage's optimizer.learning_rate"):
        train(chain, tmp_path, epochs=epochs, optimizer=optimizer)
    assert not (tmp_path / "output" / "model.safetensors").exists()
