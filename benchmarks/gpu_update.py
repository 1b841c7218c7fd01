"""Model FLOP utilisation of PPO's update of policy and value model, and how often it waits for the GPU.

    python benchmarks/gpu_update.py [--shape smollm2|llama1b|tiny] [--batch 64] [--micro 16] [--prompt-len 64]
        [--response-len 64] [--precisions float32 bfloat16] [--device auto]

The model's own operations are counted, whatever is computed again: 6 for each weight of a layer and token (2 forward, 4
backward), 6 for each weight of the output head and response token, and 6 * layers * width * length for each token's
attention, since half of the pairs of tokens are masked. Utilisation is these per second as a share of what a large
matrix product of the same type reaches on this device. Weights are random, the optimisers' steps are included. The
update runs twice from the same state: `same_bits` says whether the metrics are equal. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from gpu_device import AGREES, SHAPES, config_of, count_waits, make_model, product_speed, seconds  # noqa: E402
from pairs import peak_memory  # noqa: E402

KL_COEF = 0.05


def make_roles(shape: str, device: Any) -> Any:
    """The four roles with random weights: two models that train, and a frozen copy of each."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    from reward.normalisation import RewardNormalisation
    from reward.scalar_model import store_normalisation
    from stages.ppo.roles import Roles

    policy = make_model(shape, device)
    config = config_of(shape)
    config.num_labels = 1
    with device:
        value = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    store_normalisation(value, RewardNormalisation())
    reference, reward = (copy.deepcopy(model).requires_grad_(False) for model in (policy, value))
    return Roles(None, policy, reference, value, reward)


def make_experience(roles: Any, config: Any, prompt: int, response: int) -> Any:
    """Random prompts and answers of full length, as PPO holds them before its first update."""
    import torch

    from policy.sampling.rollout import as_rollout
    from reward.sources import RolloutScores
    from stages.ppo.stage import evaluate_rollout

    device, n = roles.policy.device, config.rollout_batch
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(32, roles.policy.config.vocab_size, (n, prompt + response), generator=rng)
    rollout = as_rollout(ids[:, :prompt].tolist(), ids[:, prompt:].tolist(), 0, device)
    scores = torch.randn(n, generator=rng).to(device)
    return evaluate_rollout(roles, rollout, RolloutScores(scores, torch.zeros_like(scores), {}), config, KL_COEF)


def operations(model: Any, tokens: int, length: int, head_tokens: int, layers: int | None = None) -> float:
    """Floating-point operations of the model's forward and backward pass on texts of this length, `tokens` in all.
    `layers`: only this many at the top train, and only they are read."""
    config = model.config
    layers = config.num_hidden_layers if layers is None else layers
    weights = sum(weight.numel() for weight in model.model.layers[-layers:].parameters())
    head = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 6 * layers * head * length
    return float(tokens * (6 * weights + attention) + 6 * config.vocab_size * config.hidden_size * head_tokens)


@contextmanager
def same_state(roles: Any) -> Iterator[Callable[[], None]]:
    """Yields a function that puts the trained weights back to what they are now."""
    import torch

    kept = [(weight, weight.detach().clone()) for model in (roles.policy, roles.value) for weight in model.parameters()]

    @torch.no_grad()
    def restore() -> None:
        for weight, before in kept:
            weight.copy_(before)

    yield restore


def prepare(options: argparse.Namespace, precision: str, device: Any) -> tuple[Any, Any, Any]:
    """-> (the learner of PPO's update, its config, the experience it learns from)."""
    from data_schema import Source
    from stages.ppo.learner import make_learner
    from stages.ppo.settings import PpoConfig
    from stages.settings import OptimizerConfig, SamplingConfig

    roles = make_roles(options.shape, device)
    optimizer = OptimizerConfig(learning_rate=1e-6, schedule="constant", eps=1e-5)
    config = PpoConfig(
        prompts=[Source("prompts.jsonl")], rollout_batch=options.batch, minibatches=1, micro_batch=options.micro,
        kl_coef=KL_COEF, optimizer=optimizer, value_optimizer=optimizer, precision=precision,  # type: ignore[arg-type]
        sampling=SamplingConfig(options.response_len, 1.0, options.micro), offload_frozen=False,
    )  # fmt: skip
    learner = make_learner(roles, config)
    return learner, config, make_experience(roles, config, options.prompt_len, options.response_len)


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    import torch

    from stages.ppo.prompts import shuffles
    from stages.ppo.stage import update

    device = torch.device(options.device)
    learner, config, experience = prepare(options, precision, device)
    roles = learner.roles

    def once() -> dict[str, float]:
        return update(learner, experience, None, config, shuffles(options.batch, torch.Generator().manual_seed(0)))

    with same_state(roles) as restore:
        first = once()  # warm-up
        restore()
        again = once()
        restore()
    took = seconds(once, device, options.repeats)
    waits = count_waits(once, device)
    length = options.prompt_len + options.response_len
    tokens, answered = options.batch * length, options.batch * options.response_len
    work = operations(roles.policy, tokens, length, answered) + operations(roles.value, tokens, length, 0)
    best = product_speed(device, precision)
    return {
        "seconds": took,
        "tokens_per_second": tokens / took,
        "model_tflop": work / 1e12,
        "tflop_per_second": work / took / 1e12,
        "product_tflop_per_second": best / 1e12,
        "utilisation": work / took / best,
        "waits_per_micro_batch": None if waits is None else waits / (2 * -(-options.batch // options.micro)),
        "same_bits": first == again,
        "peak_memory": peak_memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--batch", type=int, default=64, help="episodes of an update, one optimiser step each model")
    parser.add_argument("--micro", type=int, default=16, help="episodes per forward pass")
    parser.add_argument("--prompt-len", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--response-len", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3, help="timed updates")
    parser.add_argument("--precisions", nargs="+", choices=AGREES, default=list(AGREES))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()

    import torch

    from policy.language_model import choose_device

    options.device = str(choose_device(options.device))
    found = {}
    for precision in options.precisions:
        found[precision] = measure(options, precision)
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(json.dumps({"setting": vars(options), **found}))


if __name__ == "__main__":
    main()
