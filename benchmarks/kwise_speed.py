"""Compare our reward-model trainer on rankings of K answers with TRL's RewardTrainer on all pairs of these rankings.

    python benchmarks/kwise_speed.py [--model tiny|DIR] [--k 4 9] [--repeats 3]

Both train the same model on the same prompts for the same number of steps and alternate as separate processes. TRL
reads both answers of every pair, K (K - 1) texts per prompt; we read a prompt and each answer once. The first step is
not timed. Gradient checkpointing is off on both sides; TRL's micro-batch has about as many tokens as ours. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from pairs import model_name, peak_memory, ratio, run_sides, write_result  # noqa: E402

VOCABULARY, PAD, EOS = 4096, 0, 2
PROMPT_TOKENS, ANSWER_TOKENS = (32, 96), (16, 48)  # uniform between these bounds


def rankings(n: int, k: int, seed: int) -> list[tuple[list[int], list[list[int]], list[int]]]:
    """Make n (prompt, answers, ranks) of random ids, without ties."""
    import random

    rng = random.Random(seed)

    def text(bounds: tuple[int, int]) -> list[int]:
        return [rng.randrange(8, VOCABULARY) for _ in range(rng.randint(*bounds))]

    return [
        (text(PROMPT_TOKENS), [[*text(ANSWER_TOKENS), EOS] for _ in range(k)], rng.sample(range(1, k + 1), k))
        for _ in range(n)
    ]


def make_model(name: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    torch.manual_seed(0)
    if name != "tiny":
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32)
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=672, num_hidden_layers=4, num_attention_heads=4,
            num_labels=1,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_config(config)
    model.config.pad_token_id = PAD
    return model


def make_tokenizer() -> Any:
    """Make a tokenizer, which TRL requires although the data are already ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<unk>": 1, "<eos>": EOS} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def settings(options: argparse.Namespace, rows: int, accumulate: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulate,
        "max_steps": options.steps + 1,
        "learning_rate": 1e-5,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1000,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side."""
    import torch
    from transformers import TrainerCallback, TrainingArguments

    torch.set_num_threads(options.threads)
    data = rankings((options.steps + 1) * options.prompts, options.k[0], seed=1)
    model = make_model(options.model)
    if options.side == "ours":
        from reward.normalisation import RewardNormalisation
        from reward.scalar_model import store_normalisation
        from stages.reward_model.trainer import Ranking, RankingCollator, RankingModule, RankingTrainer, shares_prompts

        store_normalisation(model, RewardNormalisation())
        rows = [Ranking(prompt, answers, tuple(ranks)) for prompt, answers, ranks in data]
        shared = shares_prompts(model, rows)
        trainer: Any = RankingTrainer(
            model=RankingModule(model),
            args=TrainingArguments(**settings(options, options.prompts, 1)),
            train_dataset=rows,
            data_collator=RankingCollator(PAD, model.config.hidden_size, shared, options.tokens),
        )
    else:
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        pairs = [
            {"chosen_ids": prompt + answers[i], "rejected_ids": prompt + answers[j]}
            for prompt, answers, ranks in data
            for i, j in ((a, b) if ranks[a] < ranks[b] else (b, a) for a, b in combinations(range(len(answers)), 2))
        ]
        # About as many tokens per forward pass as ours.
        length = (sum(PROMPT_TOKENS) + sum(ANSWER_TOKENS)) // 2
        pairs_per_step = len(pairs) // (options.steps + 1)
        at_once = max(
            d for d in range(1, pairs_per_step + 1) if pairs_per_step % d == 0 and 2 * d * length <= options.tokens
        )
        trainer = RewardTrainer(
            model,
            args=RewardConfig(
                **settings(options, at_once, pairs_per_step // at_once), max_length=None, activation_checkpointing=False
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=make_tokenizer(),
        )
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.setdefault("first", time.perf_counter())
            clock["last"] = time.perf_counter()

    trainer.add_callback(Clock())
    trainer.train()
    return {"seconds": clock["last"] - clock["first"], "peak_memory": peak_memory(), "steps": options.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="'tiny' (Llama, 4 layers of width 256) or a model directory")
    parser.add_argument("--k", type=int, nargs="+", default=[4, 9], help="numbers of answers per ranking to measure")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=8, help="timed optimiser steps")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per optimiser step")
    parser.add_argument("--tokens", type=int, default=4096, help="maximum number of tokens in a forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["ours", "trl"], help="run only this side and print its figures")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    rows = []
    for k in options.k:
        of_one_k = argparse.Namespace(**vars(options) | {"k": k})
        names = ("k", "model", "steps", "prompts", "tokens", "threads")
        found = run_sides(__file__, ("ours", "trl"), of_one_k, names, options.repeats)
        seconds, memory = ratio(found, "seconds", "trl", "ours"), ratio(found, "peak_memory", "ours", "trl")
        print(f"K = {k}: TRL takes {seconds:.2f} times our seconds; our peak memory is {memory:.2f} of TRL's")
        rows.append({"k": k, "seconds_ratio": seconds, "peak_memory_ratio": memory, "runs": found})
    model = model_name(options.model)
    setting = {name: getattr(options, name) for name in ("steps", "prompts", "tokens", "threads", "repeats")}
    write_result(f"kwise_speed_{model}", {"model": model, "setting": setting, "results": rows})
    short = [{name: row[name] for name in ("k", "seconds_ratio", "peak_memory_ratio")} for row in rows]
    columns = {name: [row[name] for row in short] for name in ("k", "seconds_ratio", "peak_memory_ratio")}
    print(json.dumps({"model": model, **columns, "results": short}))


if __name__ == "__main__":
    main()
