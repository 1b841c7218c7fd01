"""Memory that runs out in the middle of PPO: a hook in a real model refuses more rows than it is told to take."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job
from test_ppo_stage import CountingSgd, experienced, learning, roll_out, weights
from torch import Tensor, nn

from pipeline.recipe import load_recipe
from policy.errors import ModelError
from policy.reading.trials import Reading
from stages.ppo import learner as ppo_learner
from stages.ppo import stage as ppo
from stages.ppo.out_of_memory import RowsAtOnce, rows_that_fit
from stages.ppo.prompts import shuffles
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import evaluate_rollout, update
from stages.settings import OptimizerConfig

CPU = torch.device("cpu")
GPU_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@contextmanager
def room_for(limit: int, body: nn.Module, full: RuntimeError = GPU_FULL, in_backward: bool = False) -> Iterator[list]:
    """Within it the body reads at most so many rows; yields the rows of every call."""
    calls: list[int] = []

    def refuse(_: Any, inputs: Any, named: dict[str, Tensor]) -> None:
        calls.append(len(named["input_ids"]))
        if not in_backward and calls[-1] > limit:
            raise full

    def refuse_backward(_: Any, inputs: Any, outputs: Any) -> None:
        if in_backward and calls[-1] > limit:
            raise full

    handles = [
        body.register_forward_pre_hook(refuse, with_kwargs=True),
        body.layers[0].register_full_backward_hook(refuse_backward),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Update:
    """One `update` of the small chain's models from one rollout, by plain gradient steps."""

    def __init__(self, chain: Chain, limit: int = 99, where: str = "policy", **refusal: Any) -> None:
        unclipped = OptimizerConfig(max_grad_norm=1e9)
        # Rows of one sequence each, so that the hook counts episodes.
        config = replace(load_recipe(chain.path).ppo, optimizer=unclipped, value_optimizer=unclipped)
        self.roles = load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None)
        experience = experienced(chain, self.roles, roll_out(self.roles, config), config, 0.1)
        # The value model's gradient is thousands long: steps that leave rounding where it is.
        self.policy, self.value = CountingSgd(self.roles.policy, 0.01), CountingSgd(self.roles.value, 1e-5)
        self.order = torch.Generator().manual_seed(0)
        self.texts_read = 0
        self.fits = rows_that_fit(config)
        with room_for(limit, getattr(self.roles, where).model, **refusal) as self.calls:
            learner = learning(self.roles, config, self.policy, self.value)._replace(fits=self.fits)
            orders = shuffles(config.rollout_batch, self.order)
            self.metrics = update(learner, experience, self.texts(), config, orders)

    def texts(self) -> Iterator[Tensor]:
        rng = torch.Generator().manual_seed(0)
        while True:
            self.texts_read += 1
            yield torch.randint(5, 80, (4, 12), generator=rng)


@pytest.fixture(autouse=True)
def one_sequence_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.reading.states.reading_of", lambda *_: Reading(rows="padded"))


@pytest.fixture(scope="module")
def unhindered(chain: Chain) -> Update:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("policy.reading.states.reading_of", lambda *_: Reading(rows="padded"))
        return Update(chain)


@pytest.mark.parametrize(
    ("limit", "where", "refusal", "rows"),
    [
        (3, "policy", {"full": GPU_FULL}, 2),
        (4, "value", {"full": CPU_FULL}, 4),  # when the policy has taken its step already
        (2, "policy", {"full": CPU_FULL, "in_backward": True}, 2),
    ],
    ids=["forward of the policy", "forward of the value model", "backward"],
)
def test_half_the_rows_give_the_same_weights_and_nothing_is_drawn_twice(
    chain: Chain,
    unhindered: Update,
    caplog: pytest.LogCaptureFixture,
    limit: int,
    where: str,
    refusal: dict[str, Any],
    rows: int,
) -> None:
    with caplog.at_level(logging.WARNING, "triptych.ppo"):
        found = Update(chain, limit, where, **refusal)
    assert max(found.calls) == 8 and found.calls.count(8) == 1  # the size that failed is not tried again
    assert found.fits.update.rows == rows
    for name in ("policy", "value"):
        expected, got = weights(getattr(unhindered.roles, name)), weights(getattr(found.roles, name))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert getattr(found, name).steps == getattr(unhindered, name).steps == 2
    assert found.texts_read == unhindered.texts_read == 2
    assert torch.equal(found.order.get_state(), unhindered.order.get_state())
    for name, number in unhindered.metrics.items():
        assert found.metrics[name] == pytest.approx(number, rel=1e-3, abs=1e-5), name
    halvings = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(halvings) == {4: 1, 2: 2}[rows]  # a line for each halving, none for the steps after
    assert f"{rows} episodes at a time" in halvings[-1]


def test_reading_the_rollout_goes_on_with_half_the_rows(chain: Chain) -> None:
    config: PpoConfig = load_recipe(chain.path).ppo
    roles = load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None)
    rollout = roll_out(roles, config)
    expected = experienced(chain, roles, rollout, config, 0.1)
    fits = rows_that_fit(config)
    scores = ppo.RolloutScores(expected.scores, torch.zeros_like(expected.scores), {})
    with room_for(5, roles.value.model):
        got = evaluate_rollout(roles, rollout, scores, config, 0.1, fits)
    assert fits.reading.rows == 4  # 16, 8, 4
    for name in ("logprobs", "entropy", "kl", "values", "returns"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


def test_a_whole_run_goes_on_and_publishes(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Roles] = []

    def load(*given: Any) -> Roles:
        loaded.append(load_roles(*given))
        loaded[0].value.model.register_forward_pre_hook(refuse, with_kwargs=True)
        return loaded[0]

    refused: list[int] = []

    def refuse(_: Any, inputs: Any, named: dict[str, Tensor]) -> None:
        if len(named["input_ids"]) > 4:
            refused.append(len(named["input_ids"]))
            raise CPU_FULL

    monkeypatch.setattr(ppo_learner, "load_roles", load)
    given = job(tmp_path, {role: chain.checkpoint(role) for role in ("sft", "reward_model")})
    ppo.run(replace(load_recipe(chain.path).ppo, monitor=None), given)
    assert refused == [16, 8, 8]  # reading: all 16, then 8; updating: 8; and in the second iteration never
    assert len(given.tracker.records) == 2 and (given.output / "model.safetensors").is_file()


def test_where_one_row_does_not_fit_the_run_ends_with_the_cure() -> None:
    tried: list[int] = []

    def work(rows: int) -> None:
        tried.append(rows)
        raise CPU_FULL

    with pytest.raises(
        ModelError, match=r"out of memory in the update, one episode at a time; set gradient_ch"
    ) as told:
        RowsAtOnce(6, "the update").do(work)
    assert tried == [6, 3, 1] and "\n" not in str(told.value)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    def work(rows: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot"):
        RowsAtOnce(6, "the update").do(work)


def test_half_made_gradients_are_dropped() -> None:
    model = nn.Linear(1, 1, bias=False)

    def work(rows: int) -> None:
        for part in torch.ones(4, 1).split(rows):
            model(part).sum().backward()
            if rows > 2:
                raise GPU_FULL

    RowsAtOnce(4, "the update").do(work, model)
    assert model.weight.grad is not None and model.weight.grad.item() == 4
