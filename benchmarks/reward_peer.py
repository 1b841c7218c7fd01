"""TRL's side of time_to_reward.py: the PPOTrainer of TRL 1.12 on the work that WORK describes, run by a Python that has
this version. time_to_reward.py runs it; run directly, it prints one JSON object.

    PEER_PYTHON benchmarks/reward_peer.py WORK.json --micro 16 [--updates 2]

Where TRL falls short of the settings that both sides share, it is helped, so that the work is the same:

- `num_mini_batches` does not make it take more optimiser steps, and on the last batch of a pass over the prompts it
  takes one for each micro-batch. Both are set right in its accelerator.
- It ignores `max_grad_norm`, and has one learning rate: the optimiser is given to it, with a rate for each model, and
  clips each model's gradient before a step.
- It subtracts a constant from the score of an answer without EOS. The reward model given to it replaces the score, and
  applies the gain and bias in its config; the value model applies them too.

What stays its own: the score is added one position after EOS, a loss is a mean over each micro-batch, the old
log-probabilities are those of sampling.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pairs import peak_memory


class BudgetSpent(Exception):
    """Ends a training run whose seconds are used up."""


class Clock:
    """Seconds of training, and the policy's weights at intervals. The time for saving them is not counted."""

    def __init__(self, folder: Path, budget: float, every: float) -> None:
        self.folder, self.budget, self.every = folder, budget, every
        self.due = every
        self.saved: list[dict[str, Any]] = []

    def start(self) -> None:
        self.started = time.perf_counter()

    def update_ends(self, updates: int, weights: Mapping[str, Any]) -> None:
        """Save the weights if an interval has passed. Raises BudgetSpent after the update that ends the budget."""
        import torch

        paused = time.perf_counter()
        seconds = paused - self.started
        if seconds >= min(self.due, self.budget):
            path = self.folder / f"{updates:06d}.pt"
            torch.save({name: weight.detach().cpu() for name, weight in weights.items()}, path)
            self.saved.append({"seconds": seconds, "updates": updates, "weights": str(path)})
            self.due = (seconds // self.every + 1) * self.every
        if seconds >= self.budget:
            raise BudgetSpent
        self.started += time.perf_counter() - paused


def make_models(work: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Load -> (tokenizer, [policy, reference, value, reward]); value and reward model give normalised scores."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work["sft"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(work["sft"], dtype="float32") for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(work["reward_model"], dtype="float32") for _ in range(2)
    )
    for model in (value, reward):
        if not hasattr(model, "score"):
            sys.exit(f"{type(model).__name__} has no layer named 'score', which TRL reads: use another architecture")
    value.score = normalised_head(value)
    reward.score = normalised_head(reward, work["stop_ids"], work["ppo"]["score_without_eos"])
    return tokenizer, [policy, reference, value, reward]


def normalised_head(model: Any, stop_ids: Any = None, without_eos: float = 0.0) -> Any:
    """Make a head that gives gain * logit + bias of this scalar model's own head, (batch, tokens, 1). With `stop_ids`,
    all scores of a row whose last real token is none of them are `without_eos`."""
    import torch

    gain, bias = getattr(model.config, "reward_gain", 1.0), getattr(model.config, "reward_bias", 0.0)

    class NormalisedHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = model.score
            self.ended: Any = None  # of the rows that the body read last

        def forward(self, states: Any) -> Any:
            scores = gain * self.head(states) + bias
            return scores if self.ended is None else torch.where(self.ended[:, None, None], scores, without_eos)

        def remember(self, _: Any, __: Any, words: Mapping[str, Any]) -> None:
            ids, mask = words["input_ids"], words["attention_mask"].long()
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
            self.ended = torch.isin(ids.gather(1, last[:, None])[:, 0], torch.tensor(stop_ids, device=ids.device))

    head = NormalisedHead()
    if stop_ids is not None:
        getattr(model, model.base_model_prefix).register_forward_pre_hook(head.remember, with_kwargs=True)
    return head


def make_optimizer(ppo: Mapping[str, Any], policy: Any, value: Any) -> tuple[Any, Any]:
    """AdamW as on our side, with a learning rate for each model, and its schedule by updates."""
    import torch

    settings = [(policy, ppo["optimizer"]), (value, ppo["value_optimizer"])]
    groups = [
        {"params": list(model.parameters()), "lr": each["learning_rate"], "betas": tuple(each["betas"]),
         "eps": each["eps"], "weight_decay": each["weight_decay"]}
        for model, each in settings
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, fused=True)

    def clip(*_: Any) -> None:
        for model, each in settings:
            torch.nn.utils.clip_grad_norm_(model.parameters(), each["max_grad_norm"])

    optimizer.register_step_pre_hook(clip)

    # As warmup_from_fraction in policy/maths/schedules.py: linear, from a tenth of the rate.
    def warm_up(updates: int, step: int) -> float:
        return 1.0 if step >= updates else 0.1 + 0.9 * step / updates

    multipliers: list[Callable[[int], float]] = [partial(warm_up, each["warmup_steps"]) for _, each in settings]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, multipliers)


def run(work: Mapping[str, Any], micro: int, updates: int | None) -> dict[str, Any]:
    """Train for the budget's seconds, or for a number of updates to time one of them."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    ppo = work["ppo"]
    batch, steps = ppo["rollout_batch"], ppo["minibatches"]
    torch.set_num_threads(work["threads"])
    set_seed(work["seed"])
    tokenizer, (policy, reference, value, reward) = make_models(work)
    prompts = json.loads(Path(work["ids"]).read_text())
    folder = Path(tempfile.mkdtemp(prefix="trl-", dir=work["folder"]))
    clock = Clock(folder, work["budget"], work["every"])
    ends: list[float] = []

    class Timed(PPOTrainer):
        def log(self, *_: Any, **__: Any) -> None:
            pass

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            if updates is None:
                clock.update_ends(len(ends), dict(policy.named_parameters()))
            elif len(ends) == updates:
                raise BudgetSpent

    settings = PPOConfig(
        output_dir=str(folder), use_cpu=not torch.cuda.is_available(), bf16=False, report_to=[], disable_tqdm=True,
        save_strategy="no", eval_strategy="no", num_sample_generations=0, logging_steps=1, seed=work["seed"],
        per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro, num_mini_batches=steps,
        num_ppo_epochs=ppo["inner_epochs"], total_episodes=10**9,
        local_rollout_forward_batch_size=ppo["sampling"]["batch_size"],
        response_length=ppo["sampling"]["max_new_tokens"], temperature=ppo["sampling"]["temperature"],
        kl_coef=ppo["kl_coef"], kl_estimator=ppo["kl_estimator"], cliprange=ppo["clip_range"],
        cliprange_value=ppo["value_clip_range"] or math.inf, gamma=ppo["gamma"], lam=ppo["gae_lambda"], vf_coef=1.0,
        whiten_rewards=ppo["whiten_rewards"], stop_token="eos",
    )  # fmt: skip
    trainer = Timed(
        args=settings, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_dict({"input_ids": prompts}),
        optimizers=make_optimizer(ppo, policy, value), callbacks=[Watch()],
    )  # fmt: skip
    policy.generation_config.eos_token_id = work["stop_ids"]
    trainer.accelerator.gradient_accumulation_steps = batch // steps // micro
    trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    with contextlib.suppress(BudgetSpent):
        trainer.train()
    if updates is not None:
        return {"seconds_per_update": (ends[-1] - ends[0]) / (updates - 1), "peak_memory": peak_memory()}
    return {"peak_memory": peak_memory(), "updates": len(ends), "saved": clock.saved}


def main() -> None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="file of time_to_reward.py that describes the work")
    parser.add_argument("--micro", type=int, required=True, help="episodes per forward and backward pass")
    parser.add_argument("--updates", type=int, help="stop after this many updates, at least 2, and print the seconds")
    options = parser.parse_args()
    print(json.dumps(run(json.loads(options.work.read_text()), options.micro, options.updates)))


if __name__ == "__main__":
    main()
