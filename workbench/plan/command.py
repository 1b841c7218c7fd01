"""`triptych plan RECIPE`: what PPO will need before it starts, memory predicted (prediction.py) and time tried
(timing.py)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError

if TYPE_CHECKING:
    from stages.ppo.settings import PpoConfig
    from workbench.plan.prediction import MemoryPlan

MB = 1e6


def command(words: Sequence[str]) -> None:
    """One table, or one JSON object."""
    parser = argparse.ArgumentParser(prog="triptych plan", allow_abbrev=False, description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", metavar="DIR", help="the model's directory (default: the recipe's base model)")
    parser.add_argument(
        "--prompt-length", type=int, metavar="TOKENS", help="of the longest prompt (default: ppo.max_prompt_length)"
    )
    parser.add_argument("--no-time", action="store_true", help="memory alone, without making the passes")
    parser.add_argument("--json", action="store_true", help="one JSON object, in bytes and seconds")
    options, overrides = parser.parse_known_args(words)

    from pipeline.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if recipe.ppo is None:
        raise ConfigError(
            f"{options.recipe} has no section ppo, and that is what a plan is made of; name another recipe"
        )

    from stages.ppo.reward_settings import reads_pipelines
    from workbench.plan.prediction import predict  # with it come the libraries that a run has in memory
    from workbench.plan.process import heap_holes, process_bytes
    from workbench.plan.timing import predict_seconds

    process = process_bytes(recipe.ppo)
    model = options.model or recipe.ppo.sft or recipe.sft.base_model
    prompt_length = options.prompt_length or recipe.ppo.max_prompt_length
    with_reward_model = reads_pipelines(recipe.ppo.rewards)
    frozen_layers = recipe.reward_model.frozen_layers if recipe.reward_model and with_reward_model else None
    asked = recipe.ppo, model, prompt_length, with_reward_model, frozen_layers
    plan = predict(*asked)
    seconds = {} if options.no_time else predict_seconds(*asked)
    found = account(plan, process, heap_holes(recipe.ppo, plan), seconds)
    print(json.dumps(found) if options.json else table(found, str(model), prompt_length, recipe.ppo))


def account(plan: MemoryPlan, process: int, heap: int, seconds: dict[str, float]) -> dict[str, Any]:
    """The plan as JSON-ready values, in bytes and seconds."""
    roles = {role.name: {"weights": role.weights, "gradients": role.gradients, "optimizer": role.optimizer,
                         "on_disk": role.on_disk} for role in plan.roles}  # fmt: skip
    return {
        "process": process,
        "heap": heap,
        "roles": roles,
        "held": plan.held,
        "phases": {name: {"working": working, "peak": plan.held + working} for name, working in plan.phases.items()},
        "kv_cache": plan.kv_cache,
        "logits": plan.logits,
        "peak_tensors": plan.peak,
        "peak": process + heap + plan.peak,
        "seconds": seconds,
        "seconds_per_iteration": sum(seconds.values()) if seconds else None,
    }


def table(found: dict[str, Any], model: str, prompt_length: int, config: PpoConfig) -> str:
    """For people, in MB."""
    rows = [f"{'MB':<26}{'weights':>10}{'gradients':>11}{'optimizer':>11}"]
    for name, role in found["roles"].items():
        numbers = (role["weights"], role["gradients"], role["optimizer"])
        shown = f"{name} (while read)" if role["on_disk"] else name
        rows.append(f"{shown:<26}{numbers[0] / MB:>10.0f}{numbers[1] / MB:>11.0f}{numbers[2] / MB:>11.0f}")
    rows.append(f"{'':<26}{'working':>10}{'peak':>11}" + (f"{'seconds':>11}" if found["seconds"] else ""))
    for name, phase in found["phases"].items():
        time_column = f"{found['seconds'][name]:>11.1f}" if found["seconds"] else ""
        rows.append(f"{name:<26}{phase['working'] / MB:>10.0f}{phase['peak'] / MB:>11.0f}{time_column}")
    highest = max(found["phases"], key=lambda name: found["phases"][name]["peak"])
    rows += [
        f"peak {found['peak'] / MB:.0f} MB, in {highest}; Python and its libraries are {found['process'] / MB:.0f} MB "
        f"of it, holes in the heap {found['heap'] / MB:.0f} MB",
        f"of sampling the KV cache is {found['kv_cache'] / MB:.0f} MB; a chunk of logits in the update, "
        f"{found['logits'] / MB:.0f} MB",
    ]
    if found["seconds"]:
        rows.append(f"an iteration takes about {found['seconds_per_iteration']:.1f} s on this machine as busy as it is")
    rows.append(
        f"{model}, {prompt_length} + {config.sampling.max_new_tokens} tokens, {config.rollout_batch} episodes, float32"
    )
    return "\n".join(rows)
