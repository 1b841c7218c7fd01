"""Compare how soon PPO reaches a reward: ours and TRL's last PPO trainer (1.12), from the same models and prompts.

    python benchmarks/time_to_reward.py --peer-python PATH --sft DIR --reward-model DIR --prompts FILE
        [--budget 600] [--trainable-layers 8] [--precision float32] [settings of PPO]
    python benchmarks/time_to_reward.py --peer-python PATH --quickstart ROOT [--budget 120]

PATH is the Python of an environment with TRL 1.12 (`pip install trl==1.12.0`) and the same torch and transformers as
here; reward_peer.py runs its PPOTrainer there, which trains whole models, and says how the two sides are made equal.
DIR are checkpoints of our stages, FILE any source of prompts that a recipe can name, and ROOT the root of a finished
quickstart, whose models, prompts and settings are used, without its pretraining text: TRL has no such loss.

Each side trains for the budget's seconds, in turn. The clock starts when the models are loaded. The policy's weights
are saved at intervals, and the clock stands still meanwhile. Afterwards our code answers the same held-out prompts with
each of them, with the same seed, and measures the reward model's score of each answer and the KL to the SFT model.
TRL's micro-batch is the fastest of those tried before, unless --peer-micro is given. The last line is one JSON object.
Its `seconds_ratio` is TRL's seconds to the highest reward that both reached, divided by ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from pairs import alternate, median_ratio, write_result  # noqa: E402
from reward_curves import SIDES, compare, measure, table  # noqa: E402

ENDLESS = 10**6  # iterations; the budget ends a run


@dataclass(frozen=True)
class Models:
    """What both sides start from."""

    name: str  # of the work, in results
    sft: Path
    reward_model: Path


def quickstart(root: Path) -> tuple[Models, Any, Any]:
    """-> (models in the store of a finished quickstart, its PPO's settings without pretraining text, held-out prompts
    of its evaluation)."""
    from checkpoint_store import CheckpointStore
    from data_schema import Prompt, load_all
    from pipeline.recipe import load_recipe

    recipe = load_recipe(HERE.parent / "recipes" / "quickstart.yaml")
    assert recipe.ppo is not None and recipe.evaluate is not None
    store = CheckpointStore(root / "store")
    sft, reward_model = (store.open(f"quickstart/{stage}")[0] for stage in ("sft", "reward_model"))
    ppo = replace(recipe.ppo, pretraining_data=[], pretraining_coef=0.0, monitor=None)
    return Models("quickstart", sft, reward_model), ppo, load_all(recipe.evaluate.prompts, Prompt, recipe.seed)


def on_human_preferences(options: argparse.Namespace) -> tuple[Models, Any]:
    """-> (the models named by the options, settings of PPO for a small real model)."""
    from data_schema import Source
    from stages.ppo.settings import PpoConfig
    from stages.settings import OptimizerConfig, SamplingConfig

    def adam(rate: float) -> OptimizerConfig:
        return OptimizerConfig(rate, "constant", warmup_steps=2, eps=1e-5)

    ppo = PpoConfig(
        prompts=[Source(str(options.prompts), on_bad_row="drop", limit=options.rows)],
        rollout_batch=64, minibatches=4, inner_epochs=1, micro_batch=16, max_prompt_length=64, kl_coef=0.05,
        sampling=SamplingConfig(32, 1.0, 64), optimizer=adam(3e-5), value_optimizer=adam(3e-4),
    )  # fmt: skip
    return Models(options.name or options.sft.name.lower(), options.sft, options.reward_model), ppo


def with_options(ppo: Any, options: argparse.Namespace) -> Any:
    """The settings with those of the command line; schedules are constant, as the number of iterations is not known."""
    from pipeline.build import build
    from stages.ppo.settings import PpoConfig
    from stages.settings import plain

    names = ("minibatches", "inner_epochs", "micro_batch", "kl_coef", "score_without_eos", "trainable_layers")
    given = {name: getattr(options, name) for name in (*names, "rollout_batch", "precision", "max_prompt_length")}
    rows = plain(ppo) | {name: value for name, value in given.items() if value is not None}
    for section, rate in (("optimizer", options.learning_rate), ("value_optimizer", options.value_learning_rate)):
        rows[section] |= {"schedule": "constant"} | ({} if rate is None else {"learning_rate": rate})
    rows["sampling"] |= {} if options.response_len is None else {"max_new_tokens": options.response_len}
    rows["iterations"] = ENDLESS
    return build(PpoConfig, rows, "ppo")


def write_work(options: argparse.Namespace, folder: Path) -> tuple[Models, dict[str, Any]]:
    """Write the prompts that both sides train on, as records and as ids; returns the models and the work's settings."""
    from data_schema import Prompt, Source, dedup_prompts, load_all, write_records
    from policy.encoding import encode_prompts
    from policy.language_model import load_tokenizer
    from policy.special_tokens import stop_ids
    from stages.answering import unseen_prompts
    from stages.job import prompt_hash
    from stages.settings import plain

    if options.quickstart:
        models, ppo, held_out = quickstart(options.quickstart)
    else:
        (models, ppo), held_out = on_human_preferences(options), None
    ppo = with_options(ppo, options)
    tokenizer = load_tokenizer(models.sft)
    records = dedup_prompts(load_all(ppo.prompts, Prompt, options.seed))
    # The last ones of the data, if they are not known to have trained a stage.
    candidates = records.select(reversed(range(len(records)))) if held_out is None else dedup_prompts(held_out)
    unseen = unseen_prompts(candidates, (models.sft, models.reward_model), tokenizer, ppo.max_prompt_length)
    asked = unseen.first(options.answers)
    kept_back = {prompt_hash(record) for record in asked.prompts}
    rows = [record for record in records if prompt_hash(record) not in kept_back]
    encoded = encode_prompts(tokenizer, [record.prompt for record in rows])
    short = [(record, ids) for record, ids in zip(rows, encoded, strict=True) if len(ids) <= ppo.max_prompt_length]
    if len(asked.prompts) < options.answers or len(short) < ppo.rollout_batch:
        sys.exit(f"{len(asked.prompts)} held-out prompts and {len(short)} others of at most {ppo.max_prompt_length} "
                 "tokens are too few; give more prompts, or lower --answers or --rollout-batch")  # fmt: skip
    write_records(folder / "prompts.jsonl", [record for record, _ in short])
    write_records(folder / "held_out.jsonl", asked.prompts)
    (folder / "ids.json").write_text(json.dumps([ids for _, ids in short]))
    return models, {
        "sft": str(models.sft), "reward_model": str(models.reward_model), "ids": str(folder / "ids.json"),
        "folder": str(folder), "held_out": str(folder / "held_out.jsonl"), "stop_ids": list(stop_ids(tokenizer)),
        "ppo": plain(replace(ppo, prompts=[Source(str(folder / "prompts.jsonl"))])), "threads": options.threads,
        "seed": options.seed, **seconds_of(options),
    }  # fmt: skip


def seconds_of(options: argparse.Namespace, budget: float | None = None) -> dict[str, float]:
    budget = budget or options.budget
    return {"budget": budget, "every": budget / options.measurements}


def fastest_micro(options: argparse.Namespace, work: Mapping[str, Any], place: Path) -> tuple[int, dict[str, Any]]:
    """-> (TRL's fastest micro-batch, what was measured of each): at most three, halved from a whole minibatch on, each
    on iterations of one minibatch."""
    ppo = work["ppo"]
    whole = ppo["rollout_batch"] // ppo["minibatches"]
    tried = [options.peer_micro] if options.peer_micro else [whole >> i for i in range(3) if whole % (1 << i) == 0]
    if len(tried) == 1:
        return tried[0], {}
    path = place / "trial.json"
    path.write_text(json.dumps({**work, "ppo": ppo | {"rollout_batch": whole, "minibatches": 1}}))
    commands = {str(micro): [*peer(options, path), "--micro", str(micro), "--updates", "3"] for micro in tried}
    found = {micro: runs[0] for micro, runs in alternate(commands, 1).items()}
    return int(min(found, key=lambda micro: found[micro]["seconds_per_update"])), found


def peer(options: argparse.Namespace, path: Path) -> list[str]:
    return [str(options.peer_python), str(HERE / "reward_peer.py"), str(path)]


def options_of_the_work(parser: argparse.ArgumentParser) -> None:
    """Add what both sides start from and how they train. Defaults are in brackets; with --quickstart, the recipe's."""
    add = parser.add_argument
    add("--sft", type=Path, help="checkpoint of the SFT model")
    add("--reward-model", type=Path, help="checkpoint of the reward model")
    add("--prompts", help="source of prompts")
    add("--rows", type=int, default=4000, help="rows read of the source (%(default)s)")
    add("--quickstart", type=Path, metavar="ROOT", help="root of a finished quickstart, in place of these")
    add("--name", help="name of the work in results (default: the name of the SFT model's folder)")
    add(
        "--rollout-batch",
        type=int,
        help="episodes per iteration (64; all from here to --max-prompt-length: with --quickstart, the recipe's)",
    )
    add("--minibatches", type=int, help="optimiser steps per epoch (4)")
    add("--inner-epochs", type=int, help="epochs over an iteration's episodes (1)")
    add("--learning-rate", type=float, help="the policy's (3e-5)")
    add("--value-learning-rate", type=float, help="the value model's (3e-4)")
    add("--kl-coef", type=float, help="weight of the KL penalty (0.05)")
    add("--score-without-eos", type=float, help="score of an answer that does not end (-1)")
    add("--response-len", type=int, help="tokens of an answer, at most (32)")
    add("--max-prompt-length", type=int, help="tokens of a prompt, at most (64)")
    add("--threads", type=int, default=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="Python with TRL 1.12")
    options_of_the_work(parser)
    parser.add_argument("--trainable-layers", type=int, help="of our side: top layers that train (default: all)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of our side; TRL's is float32")
    parser.add_argument("--micro-batch", type=int, help="of our side: episodes per pass (16); same gradient")
    parser.add_argument("--peer-micro", type=int, help="TRL's (default: the fastest of those tried)")
    parser.add_argument(
        "--peer-learning-rates", type=float, nargs=2, metavar=("POLICY", "VALUE"), help="TRL's, if other"
    )
    parser.add_argument("--budget", type=float, default=600, help="seconds of training per run (%(default)s)")
    parser.add_argument("--peer-budget", type=float, help="TRL's (default: the same), to let it reach higher rewards")
    parser.add_argument("--measurements", type=int, default=8, help="of each run's policy (%(default)s)")
    parser.add_argument("--answers", type=int, default=256, help="held-out prompts answered (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, each pair with another seed")
    parser.add_argument("--seed", type=int, default=0, help="of the first pair (%(default)s)")
    options = parser.parse_args()
    if not (options.quickstart or (options.sft and options.reward_model and options.prompts)):
        parser.error("give either --quickstart or all of --sft, --reward-model and --prompts")
    with tempfile.TemporaryDirectory() as place:
        models, work = write_work(options, Path(place))
        result = measured(options, models, work, Path(place))
    write_result(f"time_to_reward_{models.name}", result)
    left_out = ("runs", "curves", "micro_batches_tried")
    print(json.dumps({name: value for name, value in result.items() if name not in left_out}))


def setting(
    options: argparse.Namespace, models: Models, work: Mapping[str, Any], theirs: Mapping[str, Any], micro: int
) -> dict[str, Any]:
    """What was compared, without the places of files."""
    ppo = work["ppo"]
    shared = ("rollout_batch", "minibatches", "inner_epochs", "kl_coef", "score_without_eos", "max_prompt_length")
    rates = {
        side: [each[section]["learning_rate"] for section in ("optimizer", "value_optimizer")]
        for side, each in zip(SIDES, (ppo, theirs), strict=True)
    }
    return {
        "models": models.name, **{name: ppo[name] for name in shared}, "sampling": ppo["sampling"],
        "learning_rates": rates, "precision": ppo["precision"], "trainable_layers": ppo.get("trainable_layers"),
        "micro_batch": {"ours": ppo["micro_batch"], "trl": micro}, "budget": options.budget,
        "peer_budget": options.peer_budget or options.budget, "answers": options.answers, "threads": options.threads,
        "seeds": list(range(options.seed, options.seed + options.repeats)),
    }  # fmt: skip


def measured(options: argparse.Namespace, models: Models, work: dict[str, Any], place: Path) -> dict[str, Any]:
    """Run both sides in turn and measure their policies; prints the tables."""
    paths = {side: place / f"{side}.json" for side in SIDES}
    theirs = json.loads(json.dumps(work["ppo"]))
    rates = options.peer_learning_rates
    for section, rate in zip(("optimizer", "value_optimizer"), rates or (None, None), strict=True):
        theirs[section] |= {} if rate is None else {"learning_rate": rate}
    micro = 0
    tried: dict[str, Any] = {}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        work |= {"seed": options.seed + repeat}
        paths["ours"].write_text(json.dumps(work))
        paths["trl"].write_text(json.dumps(work | {"ppo": theirs} | seconds_of(options, options.peer_budget)))
        if not micro:
            micro, tried = fastest_micro(options, work, place)
        commands = {
            "ours": [sys.executable, str(HERE / "reward_ours.py"), str(paths["ours"])],
            "trl": [*peer(options, paths["trl"]), "--micro", str(micro)],
        }
        for side, found in alternate(commands, 1).items():
            runs[side] += found
    measurements = measure(work, [run for side in SIDES for run in runs[side]])
    curves = {side: [next(measurements) for _ in runs[side]] for side in SIDES}
    pairs = [compare(*both) for both in zip(*curves.values(), strict=True)]
    for pair, *both in zip(pairs, *curves.values(), strict=True):
        print(table(dict(zip(SIDES, both, strict=True)), pair))
    ratios = [pair["seconds_ratio"] for pair in pairs]
    return {
        "seconds_ratio": None if None in ratios else statistics.median(ratios),
        "kl_at_level": {side: statistics.fmean(pair["kl_at_level"][side] for pair in pairs) for side in SIDES},
        "peak_memory_ratio": median_ratio(*([run["peak_memory"] for run in runs[side]] for side in SIDES)),
        "levels": [pair["levels"] for pair in pairs],
        "setting": setting(options, models, work, theirs, micro),
        "micro_batches_tried": tried,
        "curves": {side: [[point._asdict() for point in curve] for curve in curves[side]] for side in SIDES},
        "runs": {side: [{k: v for k, v in run.items() if k != "saved"} for run in runs[side]] for side in SIDES},
    }


if __name__ == "__main__":
    main()
