"""Compare overfitting with one batch element per prompt and with shuffled pairs (InstructGPT 3.5).

    triptych sft --config recipes/quickstart.yaml --root out/k9
    triptych comparisons --config recipes/quickstart.yaml --comparisons.answers_per_prompt 9 \
        --comparisons.prompts.limit 800 --root out/k9
    python benchmarks/kwise_overfitting.py out/k9 quickstart [--epochs 3] [--out docs/images/kwise_overfitting.svg]

The same rankings train the same reward model twice: as K-wise elements (all pairs of a prompt together), and as pairs
shuffled over the whole set. Both make the same number of steps with the same number of pairs. Shuffled, an answer is in
K - 1 steps of an epoch; K-wise, in one. Held-out log loss and accuracy are recorded several times per epoch.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from pairs import RESULTS, write_result  # noqa: E402

LEARNING_RATE, PROMPTS, MEASURED_EACH = 1e-3, 16, 4  # prompts per step; measurements per epoch


def expanded(rankings: list[Any]) -> list[Any]:
    """Turn every pair with a preference into a separate ranking."""
    from reward.ranking_loss import ranked_pairs
    from stages.reward_model.trainer import Ranking

    return [
        Ranking(ranking.prompt, [ranking.responses[winner], ranking.responses[loser]], (1, 2))
        for ranking in rankings
        for winner, loser in ranked_pairs(ranking.ranks)
    ]


def train(
    sft: Path, rows: list[Any], batch: int, held_out: list[Any], pad_id: int, epochs: int
) -> list[dict[str, Any]]:
    import torch
    from transformers import TrainerCallback, TrainingArguments

    from policy.language_model import disable_dropout
    from reward.scalar_model import from_language_model
    from stages.optimizer import make_optimizer
    from stages.reward_model.measures import answer_scores, judge_pairs
    from stages.reward_model.trainer import RankingCollator, RankingModule, RankingTrainer, shares_prompts
    from stages.settings import OptimizerConfig

    model: Any = from_language_model(sft, torch.device("cpu"), seed=0)
    disable_dropout(model)
    per_epoch = len(rows) // batch
    record: list[dict[str, Any]] = []

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            part = state.global_step * MEASURED_EACH / per_epoch
            if int(part) > int((state.global_step - 1) * MEASURED_EACH / per_epoch):
                model.eval()
                judged = judge_pairs(answer_scores(model, held_out, pad_id), held_out)
                model.train()
                row = {
                    "step": int(part),
                    "accuracy": judged["pair_accuracy"],
                    "log loss": judged["judgement"]["log_loss"],
                }
                record.append(row)
                print(row, file=sys.stderr, flush=True)

    share = shares_prompts(model, rows)
    trainer = RankingTrainer(
        model=RankingModule(model),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=per_epoch * epochs,
            report_to="none", save_strategy="no", disable_tqdm=True, bf16=False, use_cpu=True, logging_steps=1000,
            remove_unused_columns=False, dataloader_pin_memory=False, dataloader_drop_last=True,
        ),
        train_dataset=rows,
        data_collator=RankingCollator(pad_id, model.config.hidden_size, share, 0),
        optimizers=make_optimizer(
            model.parameters(), OptimizerConfig(LEARNING_RATE, schedule="constant"), per_epoch * epochs
        ),
    )  # fmt: skip
    trainer.add_callback(Measure())
    trainer.train()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with the recipe's sft and comparisons checkpoints")
    parser.add_argument("recipe", help="name of the recipe")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/images/kwise_overfitting.svg"), help="picture to write")
    options = parser.parse_args()

    from checkpoint_store import CheckpointStore
    from data_schema import Comparison, read_records
    from policy.encoding import encode_answers
    from policy.language_model import load_tokenizer
    from reward.ranking_loss import ranked_pairs
    from stages.comparisons.stage import HELD_OUT_FILE, TRAIN_FILE
    from stages.reward_model.trainer import Ranking

    store = CheckpointStore(options.root / "store")
    sft, comparisons = (store.path(store.resolve(f"{options.recipe}/{name}")) for name in ("sft", "comparisons"))
    tokenizer = load_tokenizer(sft)
    kwise, held_out = (
        [
            Ranking(*encode_answers(tokenizer, record.prompt, record.responses), record.ranks)
            for record in read_records(comparisons / file, Comparison)
            if ranked_pairs(record.ranks)
        ]
        for file in (TRAIN_FILE, HELD_OUT_FILE)
    )
    pairs = expanded(kwise)
    random.Random(0).shuffle(pairs)
    pairs_per_step = len(pairs) * PROMPTS // len(kwise)
    print(f"{len(kwise)} rankings, {len(pairs)} pairs, {pairs_per_step} pairs per step", file=sys.stderr)
    pad_id = tokenizer.pad_token_id
    sides = {"K-wise elements": (kwise, PROMPTS), "shuffled pairs": (pairs, pairs_per_step)}
    found = {name: train(sft, rows, n, held_out, pad_id, options.epochs) for name, (rows, n) in sides.items()}
    write_result(
        "kwise_overfitting", {"rankings": len(kwise), "pairs": len(pairs), "per_epoch": MEASURED_EACH, **found}
    )
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / f"{i}.jsonl" for i in range(len(found))]
        for file, record in zip(files, found.values(), strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in record))
        plot = Path(__file__).parents[1] / "scripts" / "plot_curves.py"
        command = [sys.executable, plot, *files, "--metrics", "accuracy", "log loss", "--out", options.out]
        subprocess.run([*command, "--labels", *found, "--x", f"epoch / {MEASURED_EACH}"], check=True)


if __name__ == "__main__":
    main()
