from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from data_schema import Comparison, Demonstration, Message, load_all, read_records, write_records
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from policy.encoding import encode_answers
from policy.language_model import load_tokenizer
from reward.scalar_model import load_scalar_model
from reward.scoring import score_responses
from stages.comparisons.stage import TRAIN_FILE
from stages.reward_model import stage as reward_model
from stages.reward_model import trainer as ranking_trainer
from stages.reward_model.settings import RewardModelConfig
from stages.settings import OptimizerConfig

CPU = torch.device("cpu")


def config_of(chain: Chain, **changes: Any) -> RewardModelConfig:
    recipe = load_recipe(chain.path)
    return replace(recipe.reward_model, demonstrations=recipe.sft.data, **changes)


def train(chain: Chain, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """-> (what would be published, the stage's result)."""
    given = job(folder, {role: chain.checkpoint(role) for role in ("sft", "comparisons")})
    result = reward_model.run(config_of(chain, **changes), given)
    return folder / "output", result


def comparison(name: str, words: list[str], ranks: list[int]) -> Comparison:
    prompt = (Message("user", f"repeat these words : {name}"),)
    return Comparison(name, "test", prompt=prompt, responses=tuple(f"{word} ." for word in words), ranks=tuple(ranks))


# Answers of 2 to 4 to a prompt, ties among them: micro-batches of two prompts hold from 1 to 9 pairs.
UNEQUAL = [
    comparison("fox", ["fox", "dog"], [1, 2]),
    comparison("owl", ["owl", "dog", "cat", "hen"], [1, 2, 3, 4]),
    comparison("saw", ["saw", "axe", "rake"], [1, 2, 2]),
    comparison("fig", ["plum", "fig", "lime", "pear"], [2, 1, 2, 2]),
    comparison("red", ["blue", "red"], [2, 1]),
    comparison("lake", ["lake", "farm", "hill"], [1, 3, 2]),
]


def written(folder: Path, records: list[Comparison]) -> list[Source]:
    folder.mkdir(exist_ok=True)
    write_records(folder / "comparisons.jsonl", records)
    return [Source(str(folder / "comparisons.jsonl"))]


@pytest.mark.parametrize(("tokens", "n_parts"), [(0, 1), (1, len(UNEQUAL)), (80, None)])
def test_parts_of_unequal_k_give_the_gradient_of_the_whole_batch(
    chain: Chain, tmp_path: Path, tokens: int, n_parts: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the Trainer, as the stage runs it: one step, its gradient against eq. 1 worked out answer by answer."""
    gradients: list[torch.Tensor] = []
    losses: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            gradients.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))

    def watched(parameters: Any, config: OptimizerConfig, steps: int) -> Any:
        optimizer = Watching([p for p in parameters if p.requires_grad], lr=0.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    before = ranking_trainer.kwise_ranking_loss
    monkeypatch.setattr(reward_model, "make_optimizer", watched)
    monkeypatch.setattr(
        ranking_trainer, "kwise_ranking_loss", lambda *a: losses.append((loss := before(*a)).item()) or loss
    )
    train(
        chain,
        tmp_path,
        data=written(tmp_path, UNEQUAL),
        held_out=0.0,
        batch_prompts=len(UNEQUAL),
        micro_batch_tokens=tokens,
        normalise_on="demonstrations",
        optimizer=OptimizerConfig(max_grad_norm=1e9),
    )

    from reward.scalar_model import from_language_model

    model = from_language_model(chain.checkpoint("sft"), CPU, 0)
    tokenizer = load_tokenizer(chain.checkpoint("sft"))
    loss = torch.zeros(())
    for record in UNEQUAL:
        prompt, answers = encode_answers(tokenizer, record.prompt, record.responses)
        scores = [model(input_ids=torch.tensor([prompt + answer])).logits[0, 0] for answer in answers]
        pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if record.ranks[i] < record.ranks[j]]
        loss = loss - sum(logsigmoid(scores[i] - scores[j]) for i, j in pairs) / len(pairs) / len(UNEQUAL)
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    (gradient,) = gradients
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert sum(losses) == pytest.approx(loss.item(), rel=1e-4)
    assert len(losses) == n_parts or (n_parts is None and 1 < len(losses) < len(UNEQUAL))


def test_a_prompt_whose_answers_all_tie_and_one_that_is_too_long_are_dropped_and_counted(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tie = comparison("bear", ["bear", "wolf"], [1, 1])
    long = comparison("crab", ["crab", "crab " * 60], [1, 2])
    source = written(tmp_path, [*UNEQUAL, tie, long])
    _, result = train(chain, tmp_path, data=source, held_out=0.0, batch_prompts=3)
    account = result.data["comparisons"]
    assert account["dropped"] == {"all answers tie": 1, "too long": 1}
    assert account["records"] == len(UNEQUAL) + 2
    assert "1 (all answers tie)" in caplog.text and "1 (too long)" in caplog.text
    assert result.metrics["steps"] == 2


def test_a_text_longer_than_the_model_has_positions_for_is_dropped_whatever_max_length_says(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The small model has 128."""
    long = comparison("crab " * 120, ["crab", "crab " * 60], [1, 2])
    source = written(tmp_path, [*UNEQUAL, long])
    _, result = train(chain, tmp_path, data=source, held_out=0.0, batch_prompts=3, max_length=1024)
    assert result.data["comparisons"]["dropped"] == {"too long": 1}
    assert "max_length is 1024, but the model has positions for 128" in caplog.text


def test_demonstrations_score_0_on_average_after_a_reload(chain: Chain, tmp_path: Path) -> None:
    output, result = train(chain, tmp_path, normalise_on="demonstrations", normalise_rows=40)
    tokenizer, model = load_tokenizer(output), load_scalar_model(output, CPU)
    records = load_all(config_of(chain).demonstrations, Demonstration, 0)
    rows = [encode_answers(tokenizer, records[i].messages[:-1], [records[i].messages[-1].content]) for i in range(40)]
    scores = score_responses(model, [row[0] for row in rows], [row[1][0] for row in rows], tokenizer.pad_token_id)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert result.metrics["reward_gain"] == 1 and result.metrics["reward_bias"] != 0


def test_the_policy_s_own_answers_score_0_with_deviation_1_after_a_reload(chain: Chain, tmp_path: Path) -> None:
    output, _ = train(chain, tmp_path, normalise_on="policy_samples", normalise_rows=50)
    tokenizer, model = load_tokenizer(output), load_scalar_model(output, CPU)
    rows = []
    for record in read_records(chain.checkpoint("comparisons") / TRAIN_FILE, Comparison):
        prompt, answers = encode_answers(tokenizer, record.prompt, record.responses)
        rows += [(prompt, answer) for answer in answers]
    prompts, answers = zip(*rows[:50], strict=True)
    scores = score_responses(model, prompts, answers, tokenizer.pad_token_id)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_pair_accuracy_is_that_of_the_published_model_on_the_held_out_pairs(chain: Chain) -> None:
    from stages.comparisons.stage import HELD_OUT_FILE

    directory = chain.checkpoint("reward_model")
    tokenizer, model = load_tokenizer(directory), AutoModelForSequenceClassification.from_pretrained(directory).eval()
    right = n = 0
    for record in read_records(chain.checkpoint("comparisons") / HELD_OUT_FILE, Comparison):
        prompt, answers = encode_answers(tokenizer, record.prompt, record.responses)
        with torch.no_grad():
            scores = [model(input_ids=torch.tensor([prompt + answer])).logits[0, 0].item() for answer in answers]
        for i, first in enumerate(record.ranks):
            for j, second in enumerate(record.ranks):
                if first < second:
                    right, n = right + (scores[i] > scores[j]), n + 1
    assert chain.summary["reward_model"]["n"] == n
    assert chain.summary["reward_model"]["pair_accuracy"] == pytest.approx(right / n)


def test_it_learns_an_order_that_can_be_learned(chain: Chain, tmp_path: Path) -> None:
    words = ["fox", "dog", "owl", "cat", "hen", "saw", "axe", "fig", "pear", "lime"]
    records = [comparison(f"{a} {b}", [b, "bear"], [1, 2]) for a in words for b in words]
    _, result = train(
        chain, tmp_path, data=written(tmp_path, records), held_out=0.2, batch_prompts=8, optimizer=OptimizerConfig(3e-3)
    )
    assert result.metrics["pair_accuracy"] > 0.9


def test_with_lora_the_whole_model_is_published_with_its_trained_head(chain: Chain, tmp_path: Path) -> None:
    from stages.settings import LoraConfig

    lora = {"lora": LoraConfig(rank=4), "optimizer": OptimizerConfig(1e-2)}
    output, result = train(chain, tmp_path, **lora)
    assert not list(output.glob("adapter_*"))  # at the top they would make it an adapter, not a whole model
    tuned, sft = (
        AutoModelForSequenceClassification.from_pretrained(path) for path in (output, chain.checkpoint("sft"))
    )
    change = tuned.model.layers[0].self_attn.q_proj.weight - sft.model.layers[0].self_attn.q_proj.weight
    assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 4
    from reward.scalar_model import from_language_model

    assert not torch.equal(tuned.score.weight, from_language_model(chain.checkpoint("sft"), CPU, 0).score.weight)
    assert result.metrics["n"] == chain.summary["reward_model"]["n"]
