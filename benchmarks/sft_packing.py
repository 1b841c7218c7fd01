"""Compare supervised tuning on packed and on padded rows: useful tokens per second, and whether the loss is the same.

    python benchmarks/sft_packing.py [--model tiny|DIR] [--steps 20] [--repeats 3]

Lengths are distributed as in Alpaca (prompts of 20 to 120 tokens, answers with a median of 60 and a maximum of 400).
Both sides see the same demonstrations in the same batches and alternate as separate processes. A useful token is any
token except padding. The first step is not timed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from kwise_speed import make_tokenizer  # noqa: E402
from pairs import model_name, peak_memory, ratio, run_sides, write_result  # noqa: E402

VOCABULARY = 4096


def demonstrations(n: int) -> list[dict[str, list[int]]]:
    rng = random.Random(0)
    rows = []
    for _ in range(n):
        prompt = [rng.randrange(8, VOCABULARY) for _ in range(rng.randint(20, 120))]
        # An answer repeats words of its prompt, so that there is something to learn.
        answer = [rng.choice(prompt) for _ in range(int(min(rng.lognormvariate(4.1, 0.9), 400)) + 1)]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import SFTConfig

    from policy.reading.ways import reads_packed
    from stages.sft.stage import DemonstrationTrainer, PackingCollator

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model == "tiny":
        shape = {"hidden_size": 256, "intermediate_size": 672, "num_hidden_layers": 4, "num_attention_heads": 4}
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    rows = demonstrations((options.steps + 1) * options.batch)
    losses: list[float] = []
    clock: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer = DemonstrationTrainer(
        model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(), max_length=None, per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.batch // options.micro_batch, max_steps=options.steps + 1,
            learning_rate=1e-3 if options.model == "tiny" else 1e-5, report_to="none", save_strategy="no",
            disable_tqdm=True, logging_steps=1, bf16=False, use_cpu=not torch.cuda.is_available(),
            dataset_kwargs={"skip_prepare_dataset": True}, activation_checkpointing=False, remove_unused_columns=False,
            gradient_checkpointing=None,  # the deprecated name, which TRL turns on by default
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=PackingCollator(0, options.side == "packed" and reads_packed(model)),
        processing_class=make_tokenizer(),
    )  # fmt: skip
    trainer.add_callback(Watch())
    trainer.train()
    seconds = clock[-1] - clock[0]
    useful = trainer.tokens_read * options.steps / (options.steps + 1)
    return {"tokens_per_second": useful / seconds, "peak_memory": peak_memory(), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="'tiny' (Llama, 4 layers of width 256) or a model directory")
    parser.add_argument("--steps", type=int, default=20, help="timed optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="demonstrations per optimiser step")
    parser.add_argument("--micro-batch", type=int, default=32, help="demonstrations per forward pass")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["packed", "padded"], help="run only this side and print its figures")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    names = ("model", "steps", "batch", "micro_batch", "threads")
    found = run_sides(__file__, ("packed", "padded"), options, names, options.repeats)
    speed, memory = (ratio(found, name, "packed", "padded") for name in ("tokens_per_second", "peak_memory"))
    pairs = zip(found["packed"][0]["losses"], found["padded"][0]["losses"], strict=True)
    apart = max(abs(a - b) for a, b in pairs)
    model = model_name(options.model)
    short = {"model": model, "tokens_per_second_ratio": speed, "peak_memory_ratio": memory, "largest_loss_gap": apart}
    setting = {name: getattr(options, name) for name in ("steps", "batch", "micro_batch", "threads", "repeats")}
    write_result(f"sft_packing_{model}", {**short, "setting": setting, "runs": found})
    print(json.dumps(short))


if __name__ == "__main__":
    main()
