"""Pretrain the quickstart's base model on plain text of its world and write it to assets/quickstart_base.

    python scripts/make_quickstart_base.py [--steps 6000] [--out assets/quickstart_base]

The model is a 0.9M-parameter Llama with a word-level tokenizer. Its text is declarative ("park dog saw backwards : saw
dog park . right ."), without instructions or chat marks. It learns to copy within a few hundred steps, but needs
thousands to distinguish right from wrong. So the script is run once (about 15 minutes on 2 cores) and the weights are
committed, as a real pipeline starts from a pretrained model. The log of the committed run is next to the weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))  # also runs from a checkout without installation
from data_schema.quickstart.data import FALSE_VERDICT, LINE_FORMS, TRUE_VERDICT, pretraining_line, vocabulary
from data_schema.quickstart.world import draw_task, right_answer, word_task, wrong_answer

ROW_TOKENS, BATCH_ROWS = 48, 48
PEAK_LR, CONSTANT_SHARE, FINAL_FRACTION = 2e-3, 0.55, 0.02
VERDICT_WEIGHT = 3.0  # one token per line says right or wrong; unweighted, the copied words outweigh it in the loss


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *vocabulary()]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=["<user>", "<assistant>"],
        model_max_length=128,
    )


def build_model(vocabulary_size: int, eos: int, pad: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=384,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def rows_of_text(tokenizer: PreTrainedTokenizerFast, rng: random.Random, n_rows: int) -> torch.Tensor:
    """(n_rows, ROW_TOKENS) token ids: lines joined by <eos>, cut into rows."""
    ids = tokenizer.get_vocab()
    stream: list[int] = []
    while len(stream) < n_rows * ROW_TOKENS:
        stream += [ids[word] for word in pretraining_line(rng).split()] + [ids["<eos>"]]
    return torch.tensor(stream[: n_rows * ROW_TOKENS]).view(n_rows, ROW_TOKENS)


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, float]:
    """Exact match of greedy continuations by kind of task, and accuracy of the verdicts "right" and "wrong"."""
    rng = random.Random(seed)
    ids = tokenizer.get_vocab()
    scores: dict[str, float] = {}
    for kind in ("repeat", "reverse", "sort", "first", "last", "count", "upper", "numbered", "pick"):
        right = 0
        for _ in range(30):
            task = draw_task(rng, kind)
            line = word_task(task, rng.choice(LINE_FORMS[kind]).replace("{y}", "")).split()
            target = [ids[word] for word in right_answer(task, rng).split()] + [ids["."]]
            context = [ids["<eos>"], *(ids[word] for word in line)]
            logits = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
            right += bool((logits.argmax(-1) == torch.tensor(target)).all())
        scores[kind] = right / 30
    # Whole lines only: a row of the training text may begin within a line, which then cannot be judged.
    verdicts = {True: ids[TRUE_VERDICT], False: ids[FALSE_VERDICT]}
    right, n_lines = 0, 600
    for i in range(n_lines):
        task = draw_task(rng)
        answer = right_answer(task, rng) if i % 2 else wrong_answer(task, rng)
        line = word_task(task, rng.choice(LINE_FORMS[task.kind]).replace("{y}", answer)).split()
        logits = model(torch.tensor([[ids["<eos>"], *(ids[word] for word in line), ids["."]]])).logits[0, -1]
        right += bool(logits[verdicts[bool(i % 2)]] > logits[verdicts[not i % 2]])
    scores["verdict"] = right / n_lines
    return {name: round(score, 3) for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("assets/quickstart_base"), help="folder (%(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    weights = torch.ones(len(tokenizer))
    weights[tokenizer.convert_tokens_to_ids([TRUE_VERDICT, FALSE_VERDICT])] = VERDICT_WEIGHT
    arguments.out.mkdir(parents=True, exist_ok=True)
    started, log = time.monotonic(), []
    for step in tqdm(range(arguments.steps), mininterval=10, unit="step"):
        progress = step / arguments.steps
        decay = max(progress - CONSTANT_SHARE, 0) / (1 - CONSTANT_SHARE)
        optimizer.param_groups[0]["lr"] = PEAK_LR * min((step + 1) / 50, 1 - (1 - FINAL_FRACTION) * decay)
        rows = rows_of_text(tokenizer, rng, BATCH_ROWS)
        logits = model(rows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), weight=weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            model.eval()
            row = {"step": step + 1, "seconds": round(time.monotonic() - started), "loss": round(loss.item(), 4)}
            log.append(row | measure(model, tokenizer, seed=1))
            model.train()
            tqdm.write(json.dumps(log[-1]))
            (arguments.out / "pretraining_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
            model.save_pretrained(arguments.out)
            tokenizer.save_pretrained(arguments.out)
    print(f"saved {model.num_parameters():,} parameters to {arguments.out}")


if __name__ == "__main__":
    main()
