"""Measure how pretraining text in PPO (PPO-ptx) limits forgetting: held-out loss, gold score and KL by coefficient.

    python benchmarks/ptx_forgetting.py out [--seed 0] [--out docs/images/ptx.svg]

Runs recipes/quickstart.yaml under the root `out`, where finished stages are skipped, and its PPO stage once for each of
VARIANTS. The loss is in nats per token, end of text included, over documents of the recipe's world that are not in
PPO's own text, each read separately. Intervals treat documents as independent. Measured are base, SFT and published
model and the policy every few iterations; results are recorded in benchmarks/results/ptx_forgetting.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.ppo.settings import PpoConfig

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from pairs import write_result  # noqa: E402

RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
DOCUMENTS, EVERY = 2000, 3  # held-out lines sampled; iterations between measurements
# Settings that a preset leaves to the recipe, and rows as long as a line of the world: 8 texts per episode (paper).
NEEDED = ("prompts", "iterations", "rollout_batch", "sampling", "pretraining_data", "monitor")
PRESET = {"preset": "instructgpt", "pretraining_length": 16}
RATES = {"optimizer": {"learning_rate": 3e-4}, "value_optimizer": {"learning_rate": 5e-4}, "ema_decay": None}
# The changes of each variant to the recipe's `ppo`; with a preset, only NEEDED is kept from the recipe.
VARIANTS: dict[str, dict[str, Any]] = {
    "no text": {"pretraining_coef": 0.0},
    "recipe: 0.1": {},
    "gradient ratio 0.5": {"pretraining_gradient_ratio": 0.5},
    "27.8": {"pretraining_coef": 27.8},
    "instructgpt": PRESET,
    "instructgpt, recipe's rates": {**PRESET, **RATES},
}
LOSS, GOLD, KL = "held-out text, nats per token", "monitor/gold", "objective/kl"
EVALUATED = ("gold_mean", "correctness_mean", "reward_mean", "kl", "eos_rate")
GRADIENTS = ("grad_norm", "ppo_grad_norm", "pretraining_grad_norm", "pretraining_coef")  # before clipping


class Losses(NamedTuple):
    """A model's losses on texts, one entry per text."""

    nats: list[float]
    tokens: list[int]  # including the end of text


def variant_section(ppo: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `ppo` section with a variant's changes, and with a snapshot every few iterations."""
    kept = {key: ppo[key] for key in NEEDED} if "preset" in changes else ppo
    return {**kept, **changes, "snapshot_every": EVERY}


def document_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch: int = 256
) -> Losses:
    """Loss of each text including its end token, with an end token before it, as documents are packed."""
    import torch

    end = tokenizer.eos_token_id
    rows = [[end, *ids, end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    found: list[float] = []
    for start in range(0, len(rows), batch):
        part = [torch.tensor(row) for row in rows[start : start + batch]]
        # Padding is on the right, where a causal model's real tokens do not see it.
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=end)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].double()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found += [float(nats[i, : len(row) - 1].sum()) for i, row in enumerate(part)]
    return Losses(found, [len(row) - 1 for row in rows])


def per_token(nats: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """sum(nats) / sum(tokens) with a 95 % interval: ratio estimator over documents (Cochran 1977, 6.3)."""
    from stages.statistics import Z_95

    n, total = len(nats), sum(tokens)
    ratio = sum(nats) / total
    squares = sum((x - ratio * size) ** 2 for x, size in zip(nats, tokens, strict=True))
    error = math.sqrt(squares * n / (n - 1)) / total
    return {"loss": ratio, "low": ratio - Z_95 * error, "high": ratio + Z_95 * error}


class Run(NamedTuple):
    """A variant's finished pipeline."""

    ppo: PpoConfig
    evaluation: dict[str, dict[str, float]]  # of the SFT model and the policy
    checkpoints: dict[str, Path]  # by stage
    directory: Path  # of the PPO run


def run_variant(name: str, root: Path, seed: int) -> Run:
    """Run the recipe with a variant's PPO. Published stages are skipped, unless the PPO run has no snapshots."""
    from checkpoint_store import CheckpointStore
    from pipeline.plan import Selection
    from pipeline.recipe import load_recipe, read_yaml
    from pipeline.runner import run_pipeline
    from stages.ppo.record import SNAPSHOTS

    rows = read_yaml(RECIPE)
    rows |= {"name": "ptx_" + "".join(c if c.isalnum() else "_" for c in name), "seed": seed}
    rows |= {"ppo": variant_section(rows["ppo"], VARIANTS[name]), "tracking": {"wandb": "disabled"}}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "variant.yaml"
        path.write_text(json.dumps(rows))  # JSON is also YAML
        recipe = load_recipe(path)
    summary = run_pipeline(recipe, root)
    keys = {stage: done["key"] for stage, done in summary["stages"].items()}
    directory = root / "runs" / keys["ppo"]
    if not (directory / SNAPSHOTS).is_dir():
        summary = run_pipeline(recipe, root, Selection(first="ppo", force=True))
    store = CheckpointStore(root / "store")
    assert recipe.ppo is not None
    checkpoints = {stage: store.path(key) for stage, key in keys.items()}
    return Run(recipe.ppo, summary["evaluation"], checkpoints, directory)


def held_out_texts(seed: int) -> list[str]:
    """Lines of the world that are not in PPO's own text (short lines are often sampled twice)."""
    from data_schema import Document, load_all
    from data_schema.quickstart.data import documents
    from pipeline.recipe import load_recipe

    ppo = load_recipe(RECIPE).ppo
    assert ppo is not None
    trained_on = {document.text for document in load_all(ppo.pretraining_data, Document, seed)}
    drawn = (document.text for document in documents("test", DOCUMENTS, seed))
    return [text for text in drawn if text not in trained_on]


def losses_over_time(run: Run, texts: Sequence[str], seed: int) -> dict[int, float]:
    """Loss by iteration, of the weights in training, not of a moving average that may be published instead."""
    import torch

    from stages.ppo.learner import begin
    from stages.ppo.record import read_snapshot, snapshot_path

    cpu = torch.device("cpu")
    learner = begin(run.ppo, {role: run.checkpoints[role] for role in ("sft", "reward_model")}, seed, cpu)
    found = {}
    for iteration in range(EVERY, run.ppo.iterations + 1, EVERY):
        read_snapshot(snapshot_path(run.directory, iteration), learner.optimizers, learner.balance, cpu)
        found[iteration] = per_token(*document_losses(learner.roles.policy, learner.roles.tokenizer, texts))["loss"]
    return found


def told(logged: Sequence[Mapping[str, float]], names: Sequence[str], take: Callable[..., float]) -> dict[str, float]:
    """Summarise each of the policy's metrics that the run has by one number."""
    return {name: take(row[f"policy/{name}"] for row in logged) for name in names if f"policy/{name}" in logged[0]}


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / f"{i}.jsonl" for i in range(len(curves))]
        for file, rows in zip(files, curves.values(), strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, HERE.parent / "scripts" / "plot_curves.py", *files, "--labels", *curves]
        subprocess.run([*command, "--metrics", LOSS, GOLD, KL, "--out", out], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder for checkpoints and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/images/ptx.svg"), help="picture (%(default)s)")
    options = parser.parse_args()

    import torch

    from pipeline.recipe import load_recipe
    from policy.language_model import load_language_model

    texts = held_out_texts(options.seed)
    runs = {name: run_variant(name, options.root, options.seed) for name in VARIANTS}
    first = next(iter(runs.values()))

    def losses(checkpoint: Path | str) -> Losses:
        return document_losses(*load_language_model(checkpoint, torch.device("cpu")), texts)

    sft = losses(first.checkpoints["sft"])
    result: dict[str, Any] = {
        "documents": len(texts),
        "tokens": sum(sft.tokens),
        "seed": options.seed,
        "base": {"text": per_token(*losses(load_recipe(RECIPE).sft.base_model))},
        "sft": {"text": per_token(*sft), **{key: first.evaluation["sft"][key] for key in EVALUATED}},
    }
    curves = {}
    for name, run in runs.items():
        policy, over_time = losses(run.checkpoints["ppo"]), losses_over_time(run, texts, options.seed)
        logged = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
        result[name] = {
            "changes": VARIANTS[name],
            "text": per_token(*policy),
            "over_sft": per_token([a - b for a, b in zip(policy.nats, sft.nats, strict=True)], sft.tokens),
            **{key: run.evaluation["ppo"][key] for key in EVALUATED},
            "by_iteration": over_time,
            "largest": told(logged, ("grad_norm", "approx_kl_k3", "mean_ratio", "pretraining_loss"), max),
            "median": told(logged, GRADIENTS, statistics.median),
        }
        began = {"step": 0, LOSS: result["sft"]["text"]["loss"]}
        curves[name] = [began, *({"step": step, LOSS: loss} for step, loss in over_time.items()), *logged]
    write_result("ptx_forgetting", result)
    draw(curves, options.out)


if __name__ == "__main__":
    main()
