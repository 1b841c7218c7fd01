"""TRL's side of ppo_step_speed.py: the PPOTrainer of TRL 1.12 on the same work, run by a Python that has this version.
ppo_step_speed.py runs it; run directly, it prints one JSON object.

Seconds of a step: `rollout` is batch_generation; `evaluate` the passes without gradients after it; `update` the rest.
The first step is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

from pairs import peak_memory


def tiny_shape(vocabulary: int) -> dict[str, Any]:
    """Config of the tiny Llama."""
    return {
        "vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 672, "num_hidden_layers": 4,
        "num_attention_heads": 4, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def make_models(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Make -> (tokenizer, [policy, reference, value, reward]); `tiny` is a random Llama of `tiny_shape`."""
    from tokenizers import Tokenizer, models
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    classes = [AutoModelForCausalLM] * 2 + [AutoModelForSequenceClassification] * 2
    if options.model != "tiny":
        tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):  # PPOTrainer masks by `!= pad_token_id`
            taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
            special = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i not in taken)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(max(special))
        return tokenizer, [
            kind.from_pretrained(options.model, dtype="float32", **({} if i < 2 else {"num_labels": 1}))
            for i, kind in enumerate(classes)
        ]
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"t{i}": i for i in range(4, options.tiny_vocab)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left",
    )  # fmt: skip
    made = [kind.from_config(LlamaConfig(**tiny_shape(options.tiny_vocab), num_labels=1)) for kind in classes]
    made[1].load_state_dict(made[0].state_dict())
    return tokenizer, made


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    tokenizer, (policy, reference, value, reward) = make_models(options)
    for model in (policy, reference, value, reward):
        model.config.pad_token_id = tokenizer.pad_token_id
    steps = options.episodes // options.batch + 1  # the first is a warm-up
    # One batch more than needed: accelerate treats a loader's last batch differently.
    vocabulary = policy.config.vocab_size
    size = ((steps + 1) * options.batch, options.prompt_len)
    ids = torch.randint(32 if vocabulary > 1000 else 8, vocabulary, size)
    ids[ids == tokenizer.pad_token_id] -= 1
    clock = Clock()
    ppo_trainer.batch_generation = clock.timed("rollout", ppo_trainer.batch_generation)
    ppo_trainer.forward = clock.without_gradients(ppo_trainer.forward)
    ppo_trainer.get_reward = clock.without_gradients(ppo_trainer.get_reward)

    class Timed(PPOTrainer):
        def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
            clock.step_ends()

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

    settings = PPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), bf16=False, report_to=[],
        disable_tqdm=True, save_strategy="no", eval_strategy="no", num_sample_generations=0, logging_steps=1, seed=1,
        per_device_train_batch_size=options.micro, gradient_accumulation_steps=options.batch // options.micro,
        num_mini_batches=1, num_ppo_epochs=options.ppo_epochs, total_episodes=steps * options.batch,
        local_rollout_forward_batch_size=64, response_length=options.response_len, temperature=1.0, kl_coef=0.05,
        learning_rate=3e-6, stop_token="eos" if options.stop == "eos" else None,
    )  # fmt: skip
    trainer = Timed(
        args=settings, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
    )  # fmt: skip
    clock.step_ends()
    trainer.train()
    wall, split = clock.after_first()
    memory = {"peak_rss_mb": peak_memory() / 2**20}
    return {"eps_per_s": (steps - 1) * options.batch / wall, "split_s": split, "mem": memory}


class Clock:
    """Seconds of each step and of its phases."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.spent = {"rollout": 0.0, "evaluate": 0.0}
        self.after: list[dict[str, float]] = []

    def timed(self, phase: str, work: Any) -> Any:
        def timing(*words: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = work(*words, **named)
            self.spent[phase] += time.perf_counter() - started
            return result

        return timing

    def without_gradients(self, work: Any) -> Any:
        import torch

        evaluating = self.timed("evaluate", work)

        def reading(*words: Any, **named: Any) -> Any:
            return (work if torch.is_grad_enabled() else evaluating)(*words, **named)

        return reading

    def step_ends(self) -> None:
        self.ends.append(time.perf_counter())
        self.after.append(dict(self.spent))

    def after_first(self) -> tuple[float, dict[str, float]]:
        """-> (seconds of all steps except the first, seconds by phase)."""
        wall = self.ends[-1] - self.ends[1]
        phases = {phase: self.after[-1][phase] - self.after[1][phase] for phase in self.spent}
        return wall, {**phases, "update": wall - sum(phases.values())}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that define the work of both sides."""
    parser.add_argument("--model", default="tiny", help="'tiny' or a model directory")
    parser.add_argument("--episodes", type=int, default=64, help="measured episodes, a multiple of --batch")
    parser.add_argument("--batch", type=int, default=16, help="episodes per PPO step")
    parser.add_argument("--micro", type=int, default=16, help="episodes per forward pass")
    parser.add_argument("--prompt-len", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--response-len", type=int, default=32, help="tokens of an answer, at most")
    parser.add_argument("--ppo-epochs", type=int, default=4, help="epochs over a step's episodes")
    parser.add_argument("--stop", choices=["none", "eos"], default="none", help="eos: a sampled EOS ends the answer")
    parser.add_argument("--tiny-vocab", type=int, default=4096, help="vocabulary size of the tiny model")
    parser.add_argument("--threads", type=int, default=2)


def main() -> None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
