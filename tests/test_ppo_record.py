"""PPO's records and snapshots: what goes in comes out, and a run that goes wrong stops with its batch on the disk."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job
from torch import Tensor

from pipeline.recipe import load_recipe
from policy.errors import ModelError
from policy.language_model import load_language_model
from policy.maths.masks import mask_from_lengths
from policy.pretraining import GradientBalance
from policy.sampling.generate import sample_responses
from policy.sampling.rollout import Rollout
from stages.ppo import stage as ppo
from stages.ppo.experience import Experience
from stages.ppo.record import Record, narrow, read_record, read_snapshot, write_record, write_snapshot
from stages.ppo.settings import PpoConfig
from stages.ppo.stop import check_experience, check_step

CPU = torch.device("cpu")
ROWS, PAD = 5, 7


def record(lengths: list[int], largest_id: int = 99) -> Record:
    """Random numbers under real lengths; filler 0, and padding by its id."""
    rng = torch.Generator().manual_seed(0)
    prompt_mask = mask_from_lengths(torch.tensor([3, 1, 4, 2, 4]), 4).flip(1)
    mask = mask_from_lengths(torch.tensor(lengths), max(lengths))

    def ids(where: Tensor) -> Tensor:
        drawn = torch.randint(8, largest_id + 1, where.shape, generator=rng)
        return torch.where(where, drawn.clamp(max=largest_id), PAD)

    def numbers() -> Tensor:
        return torch.where(mask, torch.randn(mask.shape, generator=rng), 0.0)

    rollout = Rollout(ids(prompt_mask), prompt_mask, ids(mask), mask, torch.tensor([True, False, True, True, False]))
    scores = torch.randn(ROWS, generator=rng)
    experience = Experience(
        rollout=rollout,
        scores=scores,
        parts={"reward_model": scores, "reward_model_std": torch.rand(ROWS, generator=rng)},  # one memory, two names
        **{name: numbers() for name in ("logprobs", "entropy", "kl", "values", "advantages", "returns")},
    )
    orders = [torch.randperm(ROWS, generator=rng) for _ in range(2)]
    text = [torch.randint(0, 70_000, (2, 6), generator=rng, dtype=torch.int32) for _ in range(4)]
    steps = [{"policy/loss": 0.1 + 0.2, "value/loss": 1e-300}, {"policy/loss": float("inf"), "value/loss": -0.0}]
    return Record(experience, 0.1 + 0.2, orders, text, steps, 8, 5, "why it stopped", [3, 0])


@pytest.mark.parametrize("lengths", [[2, 6, 1, 3, 6], [1, 1, 1, 1, 1]])
def test_a_record_comes_back_tensor_for_tensor(tmp_path: Path, lengths: list[int]) -> None:
    """The second: one token each, where numbers per token and per episode are as many."""
    written = record(lengths)
    write_record(tmp_path / "r.safetensors", written, PAD)
    found = read_record(tmp_path / "r.safetensors", CPU)
    for name, value in written.experience.rollout._asdict().items():
        if name != "below":  # the trunk's states can be read again
            assert torch.equal(getattr(found.experience.rollout, name), value), name
    for name, value in written.experience._asdict().items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found.experience, name), value), name
    assert (found.rows_at_once, found.rows_in_trunk) == (8, 5)
    assert found.experience.parts.keys() == written.experience.parts.keys()
    assert all(torch.equal(found.experience.parts[name], part) for name, part in written.experience.parts.items())
    assert [order.tolist() for order in found.orders] == [order.tolist() for order in written.orders]
    assert [rows.tolist() for rows in found.text] == [rows.tolist() for rows in written.text]
    assert (found.kl_coef, found.steps) == (written.kl_coef, written.steps)
    assert (found.stopped, found.at_fault) == (written.stopped, written.at_fault)


def test_ids_take_two_bytes_where_they_fit_and_four_where_they_do_not() -> None:
    assert narrow(torch.tensor([0, 32_767])).dtype == torch.int16
    assert narrow(torch.tensor([0, 32_768])).tolist() == [0, 32_768]
    assert narrow(torch.empty(0, dtype=torch.long)).dtype == torch.int16


def test_a_record_that_was_cut_short_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    write_record(path, record([2, 6, 1, 3, 6]), PAD)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"r\.safetensors is damaged"):
        read_record(path, CPU)


def test_a_snapshot_brings_weights_moments_and_rates_back(tmp_path: Path) -> None:
    """Judged by what follows: steps after the snapshot are the same as without it."""
    from stages.optimizer import make_optimizer
    from stages.settings import OptimizerConfig

    def model() -> torch.nn.Linear:
        made = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(made.weight, 0.5)
        torch.nn.init.zeros_(made.bias)
        made.bias.requires_grad_(False)
        return made

    def learn(linear: torch.nn.Linear, optimizers: Any, steps: range) -> None:
        for step in steps:
            for optimizer, schedule in optimizers.values():
                linear(torch.tensor([1.0, 2.0, float(step)])).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()

    def start() -> tuple[torch.nn.Linear, Any]:
        linear = model()
        config = OptimizerConfig(learning_rate=0.1, warmup_steps=3)
        return linear, {"policy": make_optimizer(linear.parameters(), config, 10)}

    whole, optimizers = start()
    learn(whole, optimizers, range(2))
    balance = GradientBalance(0.5)
    balance.norms = (3.0, 0.1)
    write_snapshot(tmp_path / "s.safetensors", optimizers, balance)
    learn(whole, optimizers, range(2, 6))
    again, optimizers = start()
    other = GradientBalance(0.5)
    read_snapshot(tmp_path / "s.safetensors", optimizers, other, CPU)
    assert other.norms == balance.norms
    learn(again, optimizers, range(2, 6))
    assert torch.equal(whole.weight, again.weight)
    assert not torch.equal(whole.weight, model().weight)


def run(chain: Chain, directory: Path, **changes: Any) -> None:
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    ppo.run(replace(load_recipe(chain.path).ppo, monitor=None, **changes), job(directory, parents))


def rate(learning_rate: float) -> Any:
    from stages.settings import OptimizerConfig

    return OptimizerConfig(learning_rate=learning_rate, schedule="constant", eps=1e-5)


def test_an_update_that_explodes_stops_the_run_with_its_minibatch_saved(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run(chain, tmp_path, optimizer=rate(1e3))
    told = re.fullmatch(
        r"ppo: iteration 1, minibatch 2: policy/(\w+) is (\S+?)[,;].* The batch is in (\S+); look at it with: "
        r"triptych replay (\S+) --step 1",
        str(caught.value),
    )
    assert told is not None and "\n" not in str(caught.value)
    assert told[4] == str(tmp_path)
    saved = read_record(Path(told[3]), CPU)
    assert len(saved.steps) == 1 and saved.stopped
    # The second of two minibatches of sixteen.
    assert saved.at_fault == saved.orders[0][8:].tolist()


def test_a_model_that_cannot_sample_any_more_names_the_update_that_spoiled_it(chain: Chain, tmp_path: Path) -> None:
    """One minibatch alone, so that nothing is measured between the step and the next rollout."""
    with pytest.raises(ModelError, match=r"iteration 2, sampling: .*000001.*replay \S+ --step 1$"):
        run(chain, tmp_path, optimizer=rate(1e38), minibatches=1)
    assert read_record(tmp_path / "rollouts" / "000001.safetensors", CPU).steps


def test_a_row_of_logits_that_are_not_finite_is_never_sampled_from(tiny_base: Path) -> None:
    model, tokenizer = load_language_model(tiny_base, CPU)
    with torch.no_grad():
        model.get_output_embeddings().weight[-1] = float("nan")
    ids = torch.tensor([[5, 6, 8]])
    with pytest.raises(ModelError, match="logits are not finite"):
        sample_responses(
            model,
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            max_new_tokens=2,
            temperature=1.0,
            stop_ids=[tokenizer.eos_token_id],
            pad_id=tokenizer.pad_token_id,
            rng=torch.Generator(),
        )


@pytest.mark.parametrize("name", ["logprobs", "kl", "values", "returns", "scores", "parts"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_named_with_its_episode(name: str, value: float) -> None:
    experience = record([2, 6, 1, 3, 6]).experience
    check_experience(experience)
    spoiled = experience.parts["reward_model_std"] if name == "parts" else getattr(experience, name)
    spoiled[3] = value
    with pytest.raises(ModelError, match=rf"(reward/reward_model_std|{name}) is {value} in episode 3;"):
        check_experience(experience)


@pytest.mark.parametrize(
    ("measured", "limits", "told"),
    [
        ({}, {}, None),
        ({"policy/mean_ratio": 11.0}, {}, r"policy/mean_ratio is 11, above ppo\.max_ratio \(10\)"),
        ({"policy/mean_ratio": 11.0}, {"max_ratio": 12.0}, None),
        ({"policy/approx_kl": 0.5}, {}, None),
        ({"policy/approx_kl": 0.5}, {"max_approx_kl": 0.4}, r"policy/approx_kl is 0\.5, above ppo\.max_approx_kl"),
        ({"policy/approx_kl": 1e9}, {"max_approx_kl": None}, None),
        ({"value/loss": float("nan")}, {}, "value/loss is nan"),
        ({"policy/mean_ratio": float("inf")}, {"max_ratio": None}, "policy/mean_ratio is inf"),
    ],
)
def test_a_minibatch_beyond_the_limits_is_refused(
    measured: dict[str, float], limits: dict[str, Any], told: str | None
) -> None:
    healthy = {"policy/loss": -0.1, "policy/mean_ratio": 1.02, "policy/approx_kl": 0.01, "value/loss": 3.0}
    config = PpoConfig(prompts=[], **limits)
    if told is None:
        check_step(healthy | measured, config)
    else:
        with pytest.raises(ModelError, match=told):
            check_step(healthy | measured, config)


def test_by_default_every_record_stays_and_else_the_latest_alone(chain: Chain, tmp_path: Path) -> None:
    for keep, left in ((True, ["000001", "000002"]), (False, ["000002"])):
        run(chain, tmp_path / str(keep), keep_rollouts=keep)
        assert sorted(path.stem for path in (tmp_path / str(keep) / "rollouts").glob("*.safetensors")) == left
        assert json.loads((tmp_path / str(keep) / "rollouts" / "run.json").read_text())["seed"] == 0
    assert not (tmp_path / "True" / "snapshots").exists()
