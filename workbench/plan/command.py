"""`triptych plan RECIPE`: before you run PPO, predict its peak memory and measure how long an iteration will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_schema.errors import printable
from pipeline.configs import Recipe
from pipeline.terminal.arguments import Arguments, count
from pipeline.terminal.console import as_json
from stages.errors import ConfigError

if TYPE_CHECKING:
    from checkpoint_store import CheckpointStore
    from pipeline.plan import StagePlan
    from stages.ppo.settings import PpoConfig
    from stages.reward_model.settings import RewardModelConfig
    from workbench.plan.prediction import MemoryPlan

MB = 1e6


def command(words: Sequence[str]) -> None:
    """Run `triptych plan`: print one table, or one JSON object."""
    parser = Arguments("plan", __doc__, recipe_settings=Recipe.__dataclass_fields__)
    parser.add_argument("recipe", type=Path, help="recipe with a section ppo")
    parser.add_argument("--model", metavar="DIR", help="model to plan for (default: ppo.sft, else sft.base_model)")
    parser.add_argument(
        "--prompt-length", type=count, metavar="TOKENS", help="length of the prompts (default: ppo.max_prompt_length)"
    )
    parser.add_argument("--no-time", action="store_true", help="predict memory only; do not time the passes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes and seconds")
    parser.add_root()
    options, overrides = parser.parse_with_settings(words)

    from pipeline.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if recipe.ppo is None:
        raise ConfigError(f"{options.recipe} has no section ppo to plan; add one, or give another recipe")

    from checkpoint_store import open_store
    from pipeline.gate.check import check_stages
    from pipeline.gate.trunk import check_trainable_layers
    from pipeline.plan import plan_pipeline
    from workbench.plan.prediction import predict  # also imports the libraries that a run has in memory
    from workbench.plan.process import heap_holes, process_bytes
    from workbench.plan.timing import predict_seconds

    store = open_store(options.root)
    plans = plan_pipeline(recipe, store)
    process = process_bytes(recipe.ppo)
    model = options.model or recipe.ppo.sft or (recipe.sft.base_model if recipe.sft else "")
    prompt_length = options.prompt_length or recipe.ppo.max_prompt_length
    check_trainable_layers(recipe.ppo, str(model))
    asked = recipe.ppo, model, prompt_length, reward_model(plans, store)
    plan = predict(*asked)
    seconds = {} if options.no_time else predict_seconds(*asked)
    found = account(plan, process, heap_holes(recipe.ppo, plan), seconds)
    print(as_json(found) if options.json else printable(table(found, str(model), prompt_length, recipe.ppo)))
    check_stages(plans, {stage.stage for stage in plans if not stage.exists}, store, recipe.seed, dry_run=True)


def reward_model(plans: Sequence[StagePlan], store: CheckpointStore) -> RewardModelConfig | None:
    """Settings of the reward model that PPO reads, which decide its size and what it shares with a frozen trunk; those
    of a model trained in full if nothing is known of it, and None if no reward model reads the policy's texts."""
    from stages.ppo.reward_settings import reads_pipelines
    from stages.reward_model.settings import RewardModelConfig
    from stages.settings import LoraConfig

    ppo = next(plan for plan in plans if plan.stage == "ppo")
    if not reads_pipelines(ppo.config.rewards):
        return None
    key = ppo.parents.get("reward_model", "")
    planned = next((plan for plan in plans if plan.key == key), None)
    if planned is not None:
        found, start = planned.config, planned.parents.get("sft") or str(planned.outside.get("sft"))
    elif store.exists(key):
        manifest = store.manifest(key)
        made = manifest.config
        found = RewardModelConfig(
            frozen_layers=made.get("frozen_layers"),
            trainable_layers=made.get("trainable_layers"),
            lora=LoraConfig(**made["lora"]) if made.get("lora") else None,
            ensemble=made.get("ensemble", 1),
        )
        start = manifest.parents.get("sft", "a directory")
    else:
        return RewardModelConfig()
    # It shares layers with the model that PPO starts from only if it was trained from it.
    starts = ppo.parents.get("sft") or str(ppo.outside.get("sft"))
    return replace(found, sft=ppo.config.sft if start == starts else start)


def account(plan: MemoryPlan, process: int, heap: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the plan as JSON-ready values, in bytes and seconds."""
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
        "trunk_states": plan.trunk_states,
        "trunk_states_on_disk": plan.trunk_states_on_disk,
        "peak_tensors": plan.peak,
        "peak": process + heap + plan.peak,
        "seconds": seconds,
        "seconds_per_iteration": sum(seconds.values()) if seconds else None,
    }


def table(found: dict[str, Any], model: str, prompt_length: int, config: PpoConfig) -> str:
    """Format the plan as a table in MB."""
    rows = [f"{'MB':<26}{'weights':>10}{'gradients':>11}{'optimizer':>11}"]
    for name, role in found["roles"].items():
        numbers = (role["weights"], role["gradients"], role["optimizer"])
        shown = f"{name} (while used)" if role["on_disk"] else name
        rows.append(f"{shown:<26}{numbers[0] / MB:>10.0f}{numbers[1] / MB:>11.0f}{numbers[2] / MB:>11.0f}")
    rows.append(f"{'':<26}{'working':>10}{'peak':>11}" + (f"{'seconds':>11}" if found["seconds"] else ""))
    for name, phase in found["phases"].items():
        time_column = f"{found['seconds'][name]:>11.1f}" if found["seconds"] else ""
        rows.append(f"{name:<26}{phase['working'] / MB:>10.0f}{phase['peak'] / MB:>11.0f}{time_column}")
    highest = max(found["phases"], key=lambda name: found["phases"][name]["peak"])
    rows += [
        f"peak: {found['peak'] / MB:.0f} MB, during {highest}; this includes {found['process'] / MB:.0f} MB for Python "
        f"and its libraries and {found['heap'] / MB:.0f} MB of heap fragmentation",
        f"sampling includes {found['kv_cache'] / MB:.0f} MB of KV cache; one chunk of logits in the update takes "
        f"{found['logits'] / MB:.0f} MB",
    ]
    if found["trunk_states"]:
        place = "in a file" if found["trunk_states_on_disk"] else "in memory, counted in every phase"
        rows.append(f"the trunk's states of an iteration take {found['trunk_states'] / MB:.0f} MB {place}")
    if found["seconds"]:
        rows.append(
            f"an iteration takes about {found['seconds_per_iteration']:.1f} s on this machine at its current load"
        )
    rows.append(
        f"{model}: {prompt_length} + {config.sampling.max_new_tokens} tokens for prompt and answer, "
        f"{config.rollout_batch} episodes per iteration, float32"
    )
    return "\n".join(rows)
