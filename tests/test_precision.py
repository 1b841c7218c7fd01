"""bfloat16 in PPO: the models' readings alone are cast, what they give and what is kept is float32, and a record knows
which it was."""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, write_recipe
from test_ppo_stage import config_of, experienced, roles_of, roll_out, run
from test_replay_command import handlers_and_threads_put_back, replayed  # noqa: F401

from pipeline.__main__ import main
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.errors import ModelError
from policy.precision import (
    CLEARLY_FASTER,
    LEAST_WIDTH,
    choose_precision,
    faster_precision,
    has_units,
    seconds_of_layer,
    times_as_fast,
)
from policy.reading.ways import reads_packed
from policy.sampling.rollout import response_logprobs
from stages.ppo.learner import make_learner
from stages.ppo.prompts import shuffles
from stages.ppo.stage import improve

CPU = torch.device("cpu")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with units for bfloat16, whatever this one has."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


@pytest.mark.parametrize(("seconds", "chosen"), [(0.2, "bfloat16"), (0.8, "float32"), (1.0, "float32"), (8, "float32")])
@pytest.mark.usefixtures("units")
def test_auto_is_bfloat16_only_where_that_is_clearly_faster_and_says_so(
    caplog: pytest.LogCaptureFixture, seconds: float, chosen: str
) -> None:
    caplog.set_level(logging.INFO, "triptych")
    assert faster_precision(CPU, 576, {"float32": 1.0, "bfloat16": seconds}.__getitem__) == chosen
    (line,) = caplog.messages
    assert chosen in line and f"{1 / seconds:.2f} times" in line and "cpu at width 576" in line


@pytest.mark.parametrize(("capabilities", "width"), [({"avx512_f": True}, 4096), ({"amx_bf16": True}, 256)])
def test_without_units_or_in_a_narrow_model_nothing_is_measured_and_float32_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capabilities: dict[str, bool], width: int
) -> None:
    """So the choice cannot differ from run to run where little would be gained."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    caplog.set_level(logging.INFO, "triptych")
    nothing: dict[Any, float] = {}  # a measurement would raise KeyError
    assert faster_precision(CPU, width, nothing.__getitem__) == "float32"
    (line,) = caplog.messages
    assert line.startswith("precision: float32 (")


def test_the_units_are_those_that_the_system_names() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if "avx2" not in flags:
        pytest.skip("not an x86 processor under Linux")
    assert has_units(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_what_else_the_machine_does_does_not_change_the_choice() -> None:
    """Two of three measurements take up to ten times as long as they should, of either type."""
    draw = random.Random(0)
    asked: list[str] = []

    def seconds(precision: str) -> float:
        asked.append(precision)
        own = {"float32": 2e-3, "bfloat16": 1e-3}[precision]
        return own * (1 if draw.random() < 0.33 else draw.uniform(2, 10))

    assert times_as_fast(seconds) == pytest.approx(2.0)
    assert asked == ["float32", "bfloat16"] * (len(asked) // 2) and len(asked) > 20  # in turn


def test_a_trial_of_a_real_layer_takes_a_moment_and_orders_the_types_as_the_processor_does() -> None:
    ratio = times_as_fast(partial(seconds_of_layer, CPU, LEAST_WIDTH))
    assert (ratio > CLEARLY_FASTER) == has_units(CPU)


def test_a_named_precision_is_taken_without_a_measurement() -> None:
    assert choose_precision("bfloat16", CPU, "no such model") == "bfloat16"


def test_auto_gives_the_numbers_of_what_it_chose_and_the_result_names_it(chain: Chain, tmp_path: Path) -> None:
    published, records, result = run(chain, tmp_path / "auto", iterations=1, precision="auto")
    chosen = result.metrics["precision"]
    assert chosen in ("float32", "bfloat16")
    assert json.loads((tmp_path / "auto" / "rollouts" / "run.json").read_text())["config"]["precision"] == chosen
    again, same, _ = run(chain, tmp_path / "named", iterations=1, precision=chosen)
    assert torch.equal(published, again) and records == same


def test_bfloat16_gives_float32_numbers_near_those_of_float32(chain: Chain) -> None:
    config = config_of(chain, pretraining_coef=0.0)
    roles = roles_of(chain)
    rollout = roll_out(roles, config)
    exact = experienced(chain, roles, rollout, config, 0.1)
    roles.compute_in("bfloat16")
    found = experienced(chain, roles, rollout, config, 0.1)
    for name in ("scores", "logprobs", "entropy", "kl", "values", "advantages", "returns"):
        assert getattr(found, name).dtype == torch.float32, name
    for name in ("scores", "logprobs", "values"):
        ours, theirs = getattr(found, name), getattr(exact, name)
        assert 0 < (ours - theirs).abs().max() < 0.15 * theirs.std(), name
    # The scalar head was not rounded: a bfloat16 has 8 significant bits.
    real = found.values[rollout.response_mask]
    assert (real.bfloat16().float() != real).double().mean() > 0.9
    assert reads_packed(roles.policy)  # which a trial decides that bfloat16 would fail

    orders = [torch.arange(config.rollout_batch)]
    first: list[dict[str, float]] = []
    for precision, experience in (("float32", exact), ("bfloat16", found)):
        given = replace(config, precision=precision)
        steps: list[dict[str, float]] = []
        improve(make_learner(roles_of(chain), given), experience, 0.1, None, given, iter(orders), 1, steps)
        first.append(steps[0])
    for name in ("policy/loss", "value/loss", "policy/entropy", "policy/grad_norm", "value/grad_norm"):
        assert first[1][name] == pytest.approx(first[0][name], rel=0.02) and first[1][name] != first[0][name], name


def test_what_is_kept_is_float32_and_no_step_leaves_an_old_cast_behind(chain: Chain) -> None:
    config = config_of(chain, precision="bfloat16", inner_epochs=2, pretraining_coef=0.0)
    roles = roles_of(chain)
    learner = make_learner(roles, config)
    rollout = roll_out(roles, config)
    before = response_logprobs(roles.policy, rollout, 1.0).logprobs
    orders = shuffles(config.rollout_batch, torch.Generator().manual_seed(0))
    improve(learner, experienced(chain, roles, rollout, config, 0.1), 0.1, None, config, orders, 1, [])
    for model, (optimizer, _) in zip((roles.policy, roles.value), learner.optimizers.values(), strict=True):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert moments and {moment.dtype for moment in moments} == {torch.float32}
    after = response_logprobs(roles.policy, rollout, 1.0)
    other = roles_of(chain)
    other.policy.load_state_dict(roles.policy.state_dict())
    other.compute_in("bfloat16")
    assert torch.equal(after.logprobs, response_logprobs(other.policy, rollout, 1.0).logprobs)
    assert not torch.equal(after.logprobs, before)
    # And the step's gradient is of the weights as they are: the head's, in float32 too.
    after.logprobs.sum().backward()
    assert {weight.grad.dtype for weight in roles.policy.parameters() if weight.grad is not None} == {torch.float32}


def test_in_bfloat16_too_a_run_stops_where_sampling_and_training_disagree(chain: Chain) -> None:
    config = config_of(chain, precision="bfloat16", pretraining_coef=0.0)
    roles = roles_of(chain)
    learner = make_learner(roles, config)
    found = experienced(chain, roles, roll_out(roles, config), config, 0.1)
    cooler = replace(config, sampling=replace(config.sampling, temperature=0.8))
    orders = [torch.arange(config.rollout_batch)]
    with pytest.raises(ModelError, match="gives other probabilities than in sampling"):
        improve(learner, found, 0.1, None, cooler, iter(orders), 1, [])
    improve(learner, found, 0.1, None, config, iter(orders), 1, [])


@pytest.fixture
def in_bfloat16(chain: Chain, tmp_path: Path) -> Path:
    """The run directory of two iterations with adapters, text, checkpointing and minibatches of another layout than the
    rollout was read in."""
    root = Path(shutil.copytree(chain.root, tmp_path / "out"))
    changes: dict[str, Any] = {"precision": "bfloat16", "lora": {"rank": 4}, "gradient_checkpointing": True}
    path = write_recipe(
        tmp_path / "r.yaml",
        {key: value for key, value in chain.recipe.items() if key != "evaluate"},
        **{f"ppo__{name}": value for name, value in {**changes, "inner_epochs": 2, "micro_batch": 3}.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        summary = run_pipeline(load_recipe(path), root)
    return root / "runs" / summary["stages"]["ppo"]["key"]


def test_a_run_in_bfloat16_is_replayed_bit_for_bit_and_in_float32_is_not(
    in_bfloat16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = replayed(capsys, str(in_bfloat16), "--step", "2", "--episodes", "0")
    assert code == 0 and told["equal"] and told["compared"] > 60
    run = json.loads((in_bfloat16 / "rollouts" / "run.json").read_text())
    run["config"]["precision"] = "float32"
    (in_bfloat16 / "rollouts" / "run.json").write_text(json.dumps(run))
    code, told = replayed(capsys, str(in_bfloat16), "--step", "2", "--episodes", "0")
    assert code == 1 and told["difference"]["iteration"] == 1


def test_a_precision_that_is_not_there_is_told_in_a_line(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ppo", "--config", str(chain.path), "--root", str(tmp_path), "--ppo.precision=fp8"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("triptych: ")]
    assert len(told) == 1 and "precision" in told[0] and "bfloat16" in told[0]
