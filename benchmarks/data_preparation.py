"""Compare our data preparation, from Alpaca-like rows to token batches, with TRL's preparation of the same rows.

    python benchmarks/data_preparation.py [--rows 10000 100000] [--repeats 3]

Rows are generated with lengths similar to Alpaca's: a third have an input, answers have up to 400 words. Our side reads
the JSONL, renders the template, tokenizes, computes the loss mask, drops rows that are too long and collates every
batch once. TRL's SFTTrainer prepares the same conversations with the same template and tokenizer, and its loader
collates every batch once. Runs alternate as separate processes. Peak memory is measured at each number of rows. The
last line is one JSON object.
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
from pairs import peak_memory, ratio, run_sides, write_result  # noqa: E402

MAX_LENGTH, BATCH = 512, 32


def write_rows(path: Path, n: int) -> None:
    """Write n random instructions as JSON lines in Alpaca's format."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]

    def text(n_words: float) -> str:
        return " ".join(rng.choices(words, k=max(1, int(n_words)))) + "."

    with open(path, "w") as file:
        for _ in range(n):
            row = {
                "instruction": text(rng.gauss(10, 3)),
                "input": text(rng.lognormvariate(2.5, 0.8)) if rng.random() < 0.33 else "",
                "output": text(min(rng.lognormvariate(3.6, 0.9), 400)),
            }
            file.write(json.dumps(row) + "\n")


def make_tokenizer(directory: Path) -> Any:
    """Train a byte-level BPE tokenizer of 4,096 entries on such rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    file = directory / "for_tokenizer.jsonl"
    write_rows(file, 2000)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"])
    inner.train_from_iterator(file.read_text().splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|im_end|>")


def ours(file: Path, tokenizer: Any) -> tuple[int, int]:
    """Prepare with our code -> (rows, tokens) collated."""
    from data_schema import Demonstration, Source, load_all
    from stages.sft.stage import PackingCollator, encode_records

    records = load_all([Source(str(file))], Demonstration)
    rows, _ = encode_records(records, tokenizer, MAX_LENGTH)
    collate = PackingCollator(tokenizer.pad_token_id, packed=True)
    n_rows = n_tokens = 0
    for start in range(0, len(rows), BATCH):
        columns = rows[start : start + BATCH]
        batch = collate(
            [{"input_ids": a, "labels": b} for a, b in zip(columns["input_ids"], columns["labels"], strict=True)]
        )
        n_rows, n_tokens = n_rows + len(columns["input_ids"]), n_tokens + int(batch["n_tokens"])
    return n_rows, n_tokens


def trl(file: Path, tokenizer: Any) -> tuple[int, int]:
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    def conversation(row: dict[str, str]) -> dict[str, Any]:
        asked = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
        return {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }

    cache = tempfile.mkdtemp()
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
    rows = rows.map(conversation, remove_columns=rows.column_names)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    trainer = SFTTrainer(
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(), max_length=MAX_LENGTH, per_device_train_batch_size=BATCH, report_to="none",
            bf16=False, use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    n_rows = n_tokens = 0
    for batch in trainer.get_train_dataloader():
        n_rows, n_tokens = n_rows + len(batch["input_ids"]), n_tokens + int(batch["attention_mask"].sum())
    return n_rows, n_tokens


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side; the libraries are loaded before the clock starts."""
    import datasets
    import torch
    import trl as _  # noqa: F401

    import stages.sft.stage  # noqa: F401
    from policy.encoding import set_template

    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = make_tokenizer(Path(directory))
        set_template(tokenizer, "chatml")
        file = Path(directory) / "rows.jsonl"
        write_rows(file, options.rows[0])
        before = time.perf_counter()
        n_rows, n_tokens = {"ours": ours, "trl": trl}[options.side](file, tokenizer)
        seconds = time.perf_counter() - before
    return {"seconds": seconds, "peak_memory": peak_memory(), "rows": n_rows, "tokens": n_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="numbers of rows to measure")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["ours", "trl"], help="run only this side and print its figures")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    results = []
    for n in options.rows:
        of_one_size = argparse.Namespace(**vars(options) | {"rows": n})
        found = run_sides(__file__, ("ours", "trl"), of_one_size, ("rows", "threads"), options.repeats)
        seconds = ratio(found, "seconds", "trl", "ours")
        peak = max(r["peak_memory"] for r in found["ours"])
        results.append({"rows": n, "seconds_ratio": seconds, "peak_memory": peak, "runs": found})
        print(f"{n} rows: TRL takes {seconds:.2f} times our seconds; our peak is {peak / 2**20:.0f} MB")
    growth = results[-1]["peak_memory"] - results[0]["peak_memory"]
    write_result("data_preparation", {"memory_growth": growth, "results": results})
    short = [{name: row[name] for name in ("rows", "seconds_ratio", "peak_memory")} for row in results]
    print(json.dumps({"memory_growth_mb": growth / 2**20, "results": short}))


if __name__ == "__main__":
    main()
