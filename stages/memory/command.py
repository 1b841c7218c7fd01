"""`triptych plan RECIPE`: what PPO will need, predicted before anything is loaded (stages/memory/prediction.py)."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from stages.memory.prediction import MemoryPlan
    from stages.ppo_settings import PpoConfig

MB = 1e6


def command(words: Sequence[str]) -> None:
    """One table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="triptych plan", allow_abbrev=False, description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", metavar="DIR", help="the model's directory (default: the recipe's base model)")
    parser.add_argument(
        "--prompt-length", type=int, metavar="TOKENS", help="of the longest prompt (default: ppo.max_prompt_length)"
    )
    parser.add_argument("--no-time", action="store_true", help="memory alone, without trying how fast this machine is")
    parser.add_argument("--json", action="store_true", help="one JSON object, in bytes and seconds")
    options, overrides = parser.parse_known_args(words)

    from stages.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if recipe.ppo is None:
        raise ConfigError(
            f"{options.recipe} has no section ppo, and that is what a plan is made of; name another recipe"
        )

    from stages.memory.prediction import predict  # with it come the libraries that a run has in memory
    from stages.reward_settings import reads_pipelines

    process = resident_bytes()
    model = options.model or recipe.ppo.sft or recipe.sft.base_model
    prompt_length = options.prompt_length or recipe.ppo.max_prompt_length
    plan = predict(recipe.ppo, model, prompt_length, reads_pipelines(recipe.ppo.rewards))
    seconds = {} if options.no_time else predict_seconds(recipe.ppo, plan)
    found = account(plan, process, seconds)
    print(json.dumps(found) if options.json else table(found, str(model), prompt_length, recipe.ppo))


def resident_bytes() -> int:
    """The most memory that this process has held: Python and its libraries."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def account(plan: MemoryPlan, process: int, seconds: dict[str, float]) -> dict[str, Any]:
    """The plan as JSON-ready values, in bytes and seconds."""
    roles = {role.name: {"weights": role.weights, "gradients": role.gradients, "optimizer": role.optimizer}
             for role in plan.roles}  # fmt: skip
    return {
        "process": process,
        "roles": roles,
        "held": plan.held,
        "phases": {phase.name: {"working": phase.working, "peak": plan.held + phase.working} for phase in plan.phases},
        "kv_cache": plan.kv_cache,
        "logits": plan.logits,
        "peak_tensors": plan.peak,
        "peak": process + plan.peak,
        "seconds": seconds,
        "seconds_per_iteration": sum(seconds.values()) if seconds else None,
    }


def table(found: dict[str, Any], model: str, prompt_length: int, config: PpoConfig) -> str:
    """For people, in MB."""
    rows = [f"{'MB':<26}{'weights':>10}{'gradients':>11}{'optimizer':>11}"]
    for name, role in found["roles"].items():
        numbers = (role["weights"], role["gradients"], role["optimizer"])
        rows.append(f"{name:<26}{numbers[0] / MB:>10.0f}{numbers[1] / MB:>11.0f}{numbers[2] / MB:>11.0f}")
    rows.append(f"{'':<26}{'working':>10}{'peak':>11}" + (f"{'seconds':>11}" if found["seconds"] else ""))
    for name, phase in found["phases"].items():
        time_column = f"{found['seconds'][name]:>11.1f}" if found["seconds"] else ""
        rows.append(f"{name:<26}{phase['working'] / MB:>10.0f}{phase['peak'] / MB:>11.0f}{time_column}")
    highest = max(found["phases"], key=lambda name: found["phases"][name]["peak"])
    rows += [
        f"peak {found['peak'] / MB:.0f} MB, in {highest}; Python and its libraries are {found['process'] / MB:.0f} MB "
        "of it",
        f"of sampling the KV cache is {found['kv_cache'] / MB:.0f} MB; a chunk of logits in the update, "
        f"{found['logits'] / MB:.0f} MB",
    ]
    if found["seconds"]:
        rows.append(f"an iteration takes about {found['seconds_per_iteration']:.1f} s on this machine as busy as it is")
    rows.append(
        f"{model}, {prompt_length} + {config.sampling.max_new_tokens} tokens, {config.rollout_batch} episodes, float32"
    )
    return "\n".join(rows)


def predict_seconds(config: PpoConfig, plan: MemoryPlan) -> dict[str, float]:
    """Seconds of each phase: matrix products at the speed this machine shows, every tensor written once and read once,
    and the cost of an operation as such. Adam reads and writes seven numbers for each that is trained."""
    import torch

    def best(work: Any, times: int = 5) -> float:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return min(taken)

    width, wide = 512, 2048
    weight, source = torch.randn(width, wide), torch.randn(4_000_000)
    small = torch.randn(8)
    copied = 2 * source.nbytes / best(source.clone)  # bytes a second
    each = best(lambda: [small + small for _ in range(1000)]) / 1000
    seconds = {}
    for phase in plan.phases:
        rows = torch.randn(min(phase.rows, 2048), width)
        speed = 2 * rows.shape[0] * width * wide / best(lambda rows=rows: rows @ weight)
        seconds[phase.name] = phase.flops / speed + 2 * phase.made / copied + phase.operations * each
    trained = sum(role.gradients for role in plan.roles)
    steps = config.inner_epochs * config.minibatches
    seconds["update of the policy"] += 7 * trained * steps / copied
    return seconds
