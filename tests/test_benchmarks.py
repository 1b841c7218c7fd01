"""The benchmarks measure what they say; their figures are in benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import quickstart_tokenizer, tiny_llama

from policy.language_model import LanguageModel
from policy.sampling.rollout import as_rollout, response_logprobs
from reward.normalisation import RewardNormalisation
from reward.scalar_model import from_language_model, response_scores, store_normalisation

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "pairs"))
def test_each_explains_itself(name: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, check=True)
    assert "JSON object" in done.stdout or "record" in done.stdout


def test_the_last_object_of_an_output_is_taken_whatever_stands_around_it() -> None:
    pairs = load("pairs")
    output = '{"step": 1}\nloading ...\n{\n "seconds": 2.5,\n "runs": {"a": [1]}\n}\n'
    assert pairs.last_object(output) == {"seconds": 2.5, "runs": {"a": [1]}}
    assert pairs.last_object("noise\n" + json.dumps({"x": 1})) == {"x": 1}


def test_a_ratio_is_the_median_over_neighbouring_runs() -> None:
    # The second pair ran while the machine was three times slower: its ratio is unharmed.
    assert load("pairs").median_ratio([2.0, 6.6, 2.2], [1.0, 3.0, 1.0]) == pytest.approx(2.2)


def test_both_sides_of_the_kwise_benchmark_read_the_same_rankings() -> None:
    rankings = load("kwise_speed").rankings(3, 9, seed=1)
    assert rankings == load("kwise_speed").rankings(3, 9, seed=1)
    for _, answers, ranks in rankings:
        assert len(answers) == 9 and sorted(ranks) == list(range(1, 10))


def test_one_side_alone_gives_its_figures() -> None:
    command = [
        sys.executable,
        FOLDER / "kwise_speed.py",
        "--side",
        "ours",
        "--k",
        "3",
        "--steps",
        "1",
        "--prompts",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["seconds"] > 0 and found["peak_memory"] > 1e8 and found["steps"] == 1


def test_the_plain_path_reads_as_ours_does_and_takes_none_of_its_short_cuts(tiny: LanguageModel) -> None:
    rollout = as_rollout([[5, 6, 7], [8], [9, 10]], [[20, 21, 1], [22, 1], [23, 24, 25, 26]], 0, torch.device("cpu"))
    ours = response_logprobs(tiny.model, rollout, 1.0)
    shapes: list[tuple[int, ...]] = []
    hook = tiny.model.model.register_forward_pre_hook(
        lambda _, __, words: shapes.append(tuple(words["input_ids"].shape)), with_kwargs=True
    )
    with load("quickstart_seeds").plain_reading():
        plain = response_logprobs(tiny.model, rollout, 1.0)
    hook.remove()
    assert [shape[0] for shape in shapes] == [3]  # a row for each text
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_document_is_priced_by_itself_with_the_end_on_both_sides() -> None:
    tokenizer = quickstart_tokenizer()
    model = tiny_llama(tokenizer).eval()
    texts = ["park dog saw again : park dog saw .", "red and gold are colours .", "dog"]
    together = load("ptx_forgetting").document_losses(model, tokenizer, texts)
    for text, nats, tokens in zip(texts, *together, strict=True):
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert tokens == len(text.split()) + 1
        assert nats == pytest.approx(-sum(float(logprobs[i, ids[i + 1]]) for i in range(tokens)), rel=1e-5)


def test_an_interval_over_documents_of_one_length_is_that_of_their_means() -> None:
    found = load("ptx_forgetting").per_token([2.0, 4.0, 6.0], [2, 2, 2])
    half = 1.959964 / 3**0.5  # the documents' losses per token are 1, 2 and 3: deviation 1
    assert found == pytest.approx({"loss": 2.0, "low": 2 - half, "high": 2 + half}, rel=1e-5)
    # Of unequal documents with the same loss per token the sum is certain, whatever their lengths.
    even = load("ptx_forgetting").per_token([3.0, 30.0], [2, 20])
    assert even["low"] == pytest.approx(even["high"]) == pytest.approx(1.5)


def test_a_preset_is_measured_with_its_own_settings() -> None:
    ptx = load("ptx_forgetting")
    recipe = {"pretraining_coef": 0.1, "pretraining_rows": 4, "kl_coef": 0.2, **dict.fromkeys(ptx.NEEDED, "kept")}
    section = ptx.variant_section(recipe, ptx.VARIANTS["instructgpt"])
    assert section["preset"] == "instructgpt" and section["prompts"] == "kept"
    assert not {"pretraining_coef", "pretraining_rows", "kl_coef", "optimizer", "ema_decay"} & set(section)
    assert ptx.variant_section(recipe, ptx.VARIANTS["27.8"])["kl_coef"] == 0.2


def test_seconds_to_a_reward_lie_between_the_measurements_around_it() -> None:
    curves = load("reward_curves")

    def curve(*points: tuple[float, float, float]) -> list[Any]:
        return [curves.Point(seconds, 0, reward, 0.1, kl, 0.0, 1.0, 9.0) for seconds, reward, kl in points]

    ours = curve((0, 0.0, 0.0), (10, 1.0, 2.0), (20, 3.0, 4.0))
    trl = curve((0, 0.0, 0.0), (40, 2.0, 1.0), (80, 1.5, 6.0))  # its highest level is not its last
    found = curves.compare(ours, trl)
    assert found["levels"][-1] == {"reward": 2.0, "ours": 15.0, "trl": 40.0, "ratio": 40 / 15}
    assert found["levels"][0]["reward"] == 0.5 and found["levels"][0]["ours"] == 5.0
    assert found["seconds_ratio"] == 40 / 15 and found["kl_at_level"] == {"ours": 3.0, "trl": 1.0}
    worse = curves.compare(ours, curve((0, 0.0, 0.0), (40, -1.0, 1.0)))  # no level above the start was reached
    assert worse["seconds_ratio"] is None and worse["levels"] == []


def test_time_for_saving_weights_is_not_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = load("reward_peer")
    now = [100.0]
    monkeypatch.setattr(peer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "save", lambda *_: now.__setitem__(0, now[0] + 50.0))
    clock = peer.Clock(tmp_path, budget=10.0, every=4.0)
    clock.start()
    for update, seconds in enumerate((3.0, 3.0, 3.0), start=1):
        now[0] += seconds
        clock.update_ends(update, {})
    now[0] += 3.0
    with pytest.raises(peer.BudgetSpent):
        clock.update_ends(4, {})
    assert [(saved["seconds"], saved["updates"]) for saved in clock.saved] == [(6.0, 2), (9.0, 3), (12.0, 4)]


def test_trl_maximises_the_score_that_our_ppo_does(tiny_base: Path) -> None:
    reward = from_language_model(tiny_base, torch.device("cpu"), seed=0).eval()
    store_normalisation(reward, RewardNormalisation(gain=0.5, bias=-2.0))
    rollout = as_rollout([[5, 6, 7], [8]], [[20, 21, 1], [22, 23]], 0, torch.device("cpu"))
    with torch.no_grad():
        ours = response_scores(reward, rollout)
    ids = torch.cat([rollout.prompts, rollout.responses], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.response_mask], 1)
    head = load("reward_peer").normalised_head(reward, stop_ids=[1], without_eos=-9.0)
    positions = mask.cumsum(1) - mask.long()
    with torch.no_grad():
        theirs = head(reward.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state)
    assert float(theirs[0, -1, 0]) == pytest.approx(float(ours[0]), abs=1e-5)
    assert float(theirs[1, -2, 0]) == -9.0 != pytest.approx(float(ours[1]))
