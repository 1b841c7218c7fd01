"""Compare the memory and seconds that `triptych plan` predicts with those that PPO takes, for several configurations.

    python benchmarks/ppo_memory.py [--model DIR] [--only NAME] [--rounds N]

Each configuration runs in a process of its own. It makes four PPO iterations (rollout, reading, update) on random
weights and prompts, then reads the peak of resident memory. After that, N rounds each predict the seconds and time
three more iterations. DIR is SmolLM2-135M's directory. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from pairs import last_object, peak_memory, write_result  # noqa: E402
from ppo_step_speed import whole_models  # noqa: E402

ROOT = Path(__file__).parents[1]
TINY = ROOT / "assets" / "quickstart_base"
PHASES = ("sampling", "reading", "update")


class Case(NamedTuple):
    """One configuration."""

    smollm2: bool  # otherwise the quickstart's base model
    ppo: dict[str, Any]
    prompt: int  # tokens
    reward_model: dict[str, Any]  # settings


def cases() -> dict[str, Case]:
    """The configurations by name."""
    from stages.settings import LoraConfig, SamplingConfig

    lora = {"lora": LoraConfig(16, 32.0), "rollout_batch": 8, "minibatches": 1, "micro_batch": 4}
    short = {"sampling": SamplingConfig(8, 1.0, 8)}
    checkpointing = {"rollout_batch": 8, "minibatches": 1, "gradient_checkpointing": True}
    whole = {"rollout_batch": 64, "minibatches": 2, "micro_batch": 16, "sampling": SamplingConfig(24, 1.0, 64)}
    trunk = {"rollout_batch": 16, "minibatches": 1, "inner_epochs": 4, "sampling": SamplingConfig(32, 1.0, 64)}
    top = {"trainable_layers": 8}
    return {
        "tiny_full": Case(False, whole, 24, {}),
        "tiny_trunk": Case(False, {**whole, "trainable_layers": 2}, 24, {"trainable_layers": 2}),
        "smollm2_shared_backbone": Case(True, {**lora, **short, "shared_backbone": True}, 24, {}),
        "smollm2_lora": Case(True, {**lora, **short}, 24, {}),
        "smollm2_full_checkpointing": Case(True, {**checkpointing, **short}, 24, {}),
        "smollm2_trunk": Case(True, {**trunk, **top}, 32, top),
        "smollm2_trunk_frozen_reward": Case(True, {**trunk, **top}, 32, {"frozen_layers": 18}),
    }


class Configured(NamedTuple):
    """What a configuration sets."""

    ppo: Any
    reward_model: Any
    model: str  # directory of the config of its models
    prompt: int  # tokens


def configured(name: str, model: str) -> Configured:
    from data_schema import Source
    from stages.ppo.settings import PpoConfig
    from stages.reward_model.settings import RewardModelConfig

    case = cases()[name]
    ppo = PpoConfig(prompts=[Source("prompts.jsonl")], **case.ppo)
    place = model if case.smollm2 else str(TINY)
    return Configured(ppo, RewardModelConfig(**case.reward_model), place, case.prompt)


def write_models(name: str, model: str, directory: Path) -> None:
    """Write a random SFT model and a reward model whose upper layers differ from it, as its settings say."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from policy.language_model import fit_special_tokens, load_tokenizer, save_checkpoint
    from policy.reading.freezing import freeze_below
    from reward.frozen_layers import cut_after
    from reward.scalar_model import from_language_model

    cpu, (_, settings, source, _) = torch.device("cpu"), configured(name, model)
    tokenizer = load_tokenizer(source)
    pad = None if tokenizer.pad_token != tokenizer.eos_token else "<|pad|>"
    sft = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    save_checkpoint(*fit_special_tokens(sft, tokenizer, source, cpu, pad), directory / "sft")
    reward = from_language_model(directory / "sft", cpu, seed=1)
    if settings.frozen_layers:
        cut_after(reward, settings.frozen_layers)
    freeze_below(reward, settings.trainable_layers or 1)
    with torch.no_grad():
        for weight in reward.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.01)
    save_checkpoint(reward, tokenizer, directory / "reward_model")


def roles_over_trunk(name: str, model: str, config: Any) -> Any:
    """Load the roles as a run does. Another process writes the models, so that making them is not in this one's
    peak."""
    import torch

    from stages.ppo.roles import load_roles

    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, __file__, "--model", model, "--write", name, "--place", place], check=True)
        paths = Path(place, "sft"), Path(place, "reward_model")
        return load_roles(*paths, torch.device("cpu"), config.lora, trainable_layers=config.trainable_layers)


def make_roles(name: str, root: str, model: str, config: Any) -> Any:
    """Make the four roles with random weights; the reward model's training does not matter here."""
    if config.trainable_layers is not None:
        return roles_over_trunk(name, root, config)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from policy.adapters import add_lora
    from policy.memory.shared_weights import share_weights
    from reward.adapter import scalar_model_over
    from reward.normalisation import RewardNormalisation
    from reward.scalar_model import store_normalisation
    from stages.ppo.roles import Roles

    shape = AutoConfig.from_pretrained(model)
    scalar = copy.deepcopy(shape)
    scalar.num_labels, scalar.pad_token_id = 1, 0
    policy = AutoModelForCausalLM.from_config(shape).eval()

    def adapted(whole: Any, task: str) -> Any:
        return add_lora(whole, config.lora.rank, config.lora.alpha, config.lora.targets, task)

    if config.shared_backbone:
        reference, policy = policy, share_weights(policy)
        values, rewards = (adapted(scalar_model_over(reference, scalar), "SEQ_CLS") for _ in range(2))
        value, reward = values.get_base_model(), rewards.get_base_model().requires_grad_(False)
        roles = Roles(None, policy, reference, value, reward, adapted(policy, "CAUSAL_LM"), values)
    elif config.lora is not None:
        value = AutoModelForSequenceClassification.from_config(scalar).eval()
        adapters = adapted(policy, "CAUSAL_LM"), adapted(value, "SEQ_CLS")
        roles = Roles(None, policy, policy, value, value, *adapters)
    else:
        value = AutoModelForSequenceClassification.from_config(scalar).eval()
        roles = whole_models(None, policy, value)
    for scored in (roles.value, roles.reward):
        store_normalisation(scored, RewardNormalisation())
    return roles


def measure(name: str, model: str, rounds: int) -> dict[str, Any]:
    """Measure one configuration in this process: peak after four iterations, then alternate predictions and timings."""
    import torch

    from policy.memory.checkpointing import checkpointed
    from policy.sampling.rollout import collect_rollout
    from reward.scalar_model import response_scores
    from reward.sources import RolloutScores
    from stages.ppo.learner import make_learner
    from stages.ppo.prompts import shuffles
    from stages.ppo.stage import evaluate_rollout, update

    config, reward_model, chosen, prompt = configured(name, model)
    roles = make_roles(name, model, chosen, config)
    learner = make_learner(roles, config)
    rng = torch.Generator().manual_seed(0)
    orders = shuffles(config.rollout_batch, rng)

    def iterate() -> tuple[float, ...]:
        started = time.perf_counter()
        size = (config.rollout_batch, prompt)
        rollout = collect_rollout(
            roles.policy,
            torch.randint(5, roles.policy.config.vocab_size, size, generator=rng).tolist(),
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=1.0,
            batch_size=config.sampling.batch_size,
            stop_ids=[],
            pad_id=0,
            rng=rng,
        )
        sampled = time.perf_counter()
        rollout = roles.read_trunk(rollout, config, learner.fits.trunk, Path(tempfile.gettempdir()))
        with torch.no_grad(), roles.as_reward():
            index = torch.arange(config.rollout_batch).split(config.sampling.batch_size)
            scores = torch.cat([response_scores(roles.reward, rollout.rows(rows)) for rows in index])
        judged = RolloutScores(scores, torch.zeros_like(scores), {})
        experience = evaluate_rollout(roles, rollout, judged, config, 0.05)
        read = time.perf_counter()
        with checkpointed(config.gradient_checkpointing, roles.policy, roles.value):
            update(learner, experience, None, config, orders)
        return sampled - started, read - sampled, time.perf_counter() - read

    for _ in range(4):
        iterate()
    peak = peak_memory()  # read before the prediction loads its own models
    asked = config, chosen, prompt, reward_model
    times = [(predicted_seconds(*asked), medians(iterate() for _ in range(3))) for _ in range(rounds)]
    return {"peak": peak, "seconds": times}


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    return [median(column) for column in zip(*rows, strict=True)]


def predicted_seconds(*asked: Any) -> list[float]:
    """Predicted seconds of PHASES, in order."""
    from workbench.plan.timing import predict_seconds

    found = predict_seconds(*asked)
    return [sum(value for phase, value in found.items() if phase.startswith(name)) for name in PHASES]


def predicted_bytes(name: str, model: str) -> dict[str, int]:
    """The plan's memory prediction for one configuration."""
    from workbench.plan.prediction import predict
    from workbench.plan.process import heap_holes, process_bytes

    config, reward_model, chosen, prompt = configured(name, model)
    process, plan = process_bytes(config), predict(config, chosen, prompt, reward_model)
    return {"peak": process + heap_holes(config, plan) + plan.peak, "tensors": plan.peak}


def compare(name: str, model: str, rounds: int) -> dict[str, Any]:
    """Predict and run a configuration in separate processes: a child's peak is at least its parent's size. Seconds are
    those of the round with the median ratio; one process does both in a round, as two differ by half or more."""
    found = {}
    for what in ("predict", "run"):
        words = [sys.executable, __file__, "--model", model, "--rounds", str(rounds), f"--{what}", name]
        found[what] = last_object(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    plan, run = found["predict"], found["run"]
    by_ratio = sorted(run["seconds"], key=lambda pair: sum(pair[0]) / sum(pair[1]))
    ratios = [sum(predicted) / sum(measured) for predicted, measured in by_ratio]
    predicted, measured = by_ratio[rounds // 2]
    return {
        "seconds_ratio": ratios[rounds // 2],
        "predicted_seconds": dict(zip(PHASES, predicted, strict=True)),
        "measured_seconds": dict(zip(PHASES, measured, strict=True)),
        "predicted_tensors": plan["tensors"],
        "predicted_peak": plan["peak"],
        "measured_peak": run["peak"],
        "peak_ratio": plan["peak"] / run["peak"],
        "seconds_ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m", help="SmolLM2-135M's directory")
    parser.add_argument("--only", help="run only this configuration; its result is not written")
    parser.add_argument("--rounds", type=int, default=3, help="predictions and timings per configuration")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--predict", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_models(options.write, options.model, options.place)
        return
    if options.run or options.predict:
        found = (
            measure(options.run, options.model, options.rounds)
            if options.run
            else predicted_bytes(options.predict, options.model)
        )
        print(json.dumps(found))
        return
    found = {name: compare(name, options.model, options.rounds) for name in cases() if options.only in (None, name)}
    if options.only is None:
        write_result("ppo_memory", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
