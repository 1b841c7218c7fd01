"""Run the quickstart with several seeds: is PPO always above its SFT model, and do our optimisations change results?

    python benchmarks/quickstart_seeds.py ROOT [--seeds 0 1 ...] [--plain-seeds 0 1 2] [overrides of the recipe]

Each seed runs under ROOT/seed_N; finished stages are not run again. For --plain-seeds, PPO and evaluation run again
from the same SFT and reward model with a plain implementation: it samples with Hugging Face's `generate`, reads every
text in its own row and computes all logits at once. It samples other answers, so its curves can agree with ours only as
well as two seeds do. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
sys.path[:0] = [str(RECIPE.parents[1]), str(Path(__file__).parent)]
from pairs import write_result  # noqa: E402

CURVES = ("objective/score", "monitor/gold", "objective/kl")
LAST = 9  # iterations compared, at the end of a curve
SHOWN = ("gold_mean", "correctness_mean", "style_mean")


@contextmanager
def plain_reading() -> Iterator[None]:
    """Context with one row for every text, and the logits of all its response tokens at once."""
    from policy.maths.logprobs import TokenLogprobs, entropy, token_logprobs
    from policy.reading.trials import Reading

    def whole(hidden: Any, head: Any, labels: Any, temperature: float, entropy_gradient: bool = False) -> Any:
        logits = hidden @ head.T
        return TokenLogprobs(token_logprobs(logits, labels, temperature), entropy(logits, temperature))

    with (
        patch("policy.reading.states.reading_of", lambda *_: Reading(rows="padded")),
        patch("policy.sampling.rollout.token_logprobs_from_hidden", whole),
    ):
        yield


def learn(root: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the quickstart with these overrides; return the evaluation's results and PPO's curves."""
    from pipeline.recipe import load_recipe
    from pipeline.runner import run_pipeline

    summary = run_pipeline(load_recipe(RECIPE, [*overrides, "--seed", str(seed)]), root)
    stage, models = summary["stages"]["ppo"], summary["evaluation"]
    lines = (root / "runs" / stage["key"] / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if CURVES[0] in row]
    return {
        "seed": seed,
        "pair_accuracy": summary["reward_model"]["pair_accuracy"],
        "sft": {name: models["sft"][name] for name in SHOWN},
        "ppo": {name: models["ppo"][name] for name in (*SHOWN, "win_rate", "win_rate_low", "win_rate_high", "kl")},
        "ppo_seconds": stage["seconds"],
        "curves": {name: [row[name] for row in rows] for name in CURVES},
    }


def compare(ours: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Compare the ends of curves: mean of each path, mean difference of equal seeds, spread over our seeds."""
    ends = [[statistics.fmean(run["curves"][name][-LAST:]) for run in runs] for runs in (ours, plain)]
    differences = [a - b for a, b in zip(*ends, strict=True)]
    return {
        "ours": statistics.fmean(ends[0]),
        "plain": statistics.fmean(ends[1]),
        "difference": statistics.fmean(differences),
        "spread_of_seeds": statistics.stdev(ends[0]) if len(ours) > 1 else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder for checkpoints and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)), help="default: 0 to 7")
    parser.add_argument("--plain-seeds", type=int, nargs="*", default=[], help="of --seeds; default: none")
    options, overrides = parser.parse_known_args()
    runs = [learn(options.root / f"seed_{seed}", seed, overrides) for seed in options.seeds]
    for run in runs:
        moved = ", ".join(f"{name} {run['sft'][name]:.3f} -> {run['ppo'][name]:.3f}" for name in SHOWN)
        print(f"seed {run['seed']}: {moved}, wins {run['ppo']['win_rate']:.3f}, KL {run['ppo']['kl']:.2f}")
    above = [run["seed"] for run in runs if run["ppo"]["gold_mean"] > run["sft"]["gold_mean"]]
    short: dict[str, Any] = {"seeds": options.seeds, "ppo_above_sft": above, "overrides": overrides}
    plain = []
    for seed in options.plain_seeds:
        engine = ["--ppo.sampling.engine", "policy.sampling.engines:transformers_rollout"]
        with plain_reading():
            plain.append(learn(options.root / f"seed_{seed}", seed, [*overrides, *engine]))
    if plain:
        twins = [next(run for run in runs if run["seed"] == seed) for seed in options.plain_seeds]
        short["plain_path"] = {name: compare(twins, plain, name) for name in CURVES}
    write_result("quickstart_seeds", {**short, "runs": runs, "plain_runs": plain})
    print(json.dumps(short))


if __name__ == "__main__":
    main()
