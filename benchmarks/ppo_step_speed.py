"""Compare our PPO step with TRL's last PPO trainer (1.12): same model, prompts, lengths, batch and epochs.

    python benchmarks/ppo_step_speed.py --peer-python PATH [--model tiny|DIR] [--repeats 3] [--prompt-len 32]
        [--response-len 32] [--batch 16] [--micro 16] [--ppo-epochs 4] [--stop none|eos] [--lora 0]
        [--trainable-layers N] [--precision float32|bfloat16]

PATH is the Python of an environment with TRL 1.12 (`pip install trl==1.12.0`) and the same torch and transformers as
here; ppo_peer.py runs its PPOTrainer there. Both sides train policy and value in full (with --lora, our side trains
adapters, and with --trainable-layers the upper layers over a frozen trunk), alternate as whole processes and do not
count the first update. For answers of different lengths use --stop eos --tiny-vocab 32: a random model then ends an
answer after 32 tokens on average. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from pairs import alternate, forward, median_ratio, model_name, peak_memory, write_result  # noqa: E402
from ppo_peer import add_options, tiny_shape  # noqa: E402

# Options that define the work; both sides get the same ones.
SHARED = (
    "model",
    "episodes",
    "batch",
    "micro",
    "prompt_len",
    "response_len",
    "ppo_epochs",
    "stop",
    "threads",
    "tiny_vocab",
)
OURS = ("lora", "our_micro", "trainable_layers", "precision", "device")


def make_roles(options: argparse.Namespace, device: Any) -> Any:
    """Make the four roles; `tiny` is a random Llama of 4 layers and width 256, as in ppo_peer.py."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

    from policy.adapters import add_lora
    from policy.memory.shared_weights import share_weights
    from reward.adapter import scalar_model_over
    from reward.normalisation import RewardNormalisation
    from reward.scalar_model import store_normalisation
    from stages.ppo.roles import Roles

    torch.manual_seed(1)
    if options.model == "tiny":
        from kwise_speed import make_tokenizer

        tokenizer = make_tokenizer()
        shape = tiny_shape(options.tiny_vocab)
        policy = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
        value = AutoModelForSequenceClassification.from_config(LlamaConfig(**shape, num_labels=1))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        policy = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        value = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=torch.float32)
    store_normalisation(value, RewardNormalisation())
    policy, value = policy.to(device), value.to(device)
    if options.lora:  # four roles over one copy of the weights, as with ppo.shared_backbone
        backbone, policy = policy, share_weights(policy)
        adapters = add_lora(policy, options.lora, 2 * options.lora, "all-linear", "CAUSAL_LM")
        scalars = [
            add_lora(scalar_model_over(backbone, value.config), options.lora, 2 * options.lora, "all-linear", "SEQ_CLS")
            for _ in range(2)
        ]
        values, rewards = (whole.get_base_model().eval() for whole in scalars)
        return Roles(tokenizer, policy.eval(), backbone, values, rewards.requires_grad_(False), adapters, scalars[0])
    if options.trainable_layers:
        return over_trunk(tokenizer, policy, value, options.trainable_layers)
    return whole_models(tokenizer, policy, value)


def over_trunk(tokenizer: Any, policy: Any, value: Any, trainable_layers: int) -> Any:
    """Make four roles over one trunk. The reward model has the policy's lower layers, as one that was trained with
    `reward_model.frozen_layers` from this SFT model has; it is also what the value model starts from."""
    from policy.language_model import LanguageModel
    from stages.ppo.roles import ready, roles_over_trunk

    value.model.load_state_dict(policy.model.state_dict())
    with tempfile.TemporaryDirectory() as place:
        value.save_pretrained(place)
        language_model = LanguageModel(policy.eval(), tokenizer)
        return ready(roles_over_trunk(language_model, Path(place), policy.device, None, trainable_layers))


def whole_models(tokenizer: Any, policy: Any, value: Any) -> Any:
    """Make four roles; reference and reward model have checkpoints, where their weights stay while not in use."""
    from stages.ppo.roles import Roles, frozen_on_disk

    places = [Path(tempfile.mkdtemp()) for _ in range(2)]
    for model, place in zip((policy, value), places, strict=True):
        atexit.register(shutil.rmtree, place)
        model.save_pretrained(place)
    reference, reward = (
        type(model).from_pretrained(place, dtype=model.dtype).to(model.device)
        for model, place in zip((policy, value), places, strict=True)
    )
    roles = Roles(tokenizer, policy.eval(), reference.eval(), value.eval(), reward.eval())
    return replace(roles, offloaded=frozen_on_disk(roles, *places))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure our side."""
    import torch

    from data_schema import Message, Prompt, Source
    from policy.language_model import choose_device
    from policy.sampling.rollout import collect_rollout
    from reward.scalar_model import response_scores
    from reward.sources import ModelReward, Part, Scored, score_rollout
    from stages.ppo.learner import make_learner
    from stages.ppo.prompts import shuffles
    from stages.ppo.settings import PpoConfig
    from stages.ppo.stage import evaluate_rollout, update
    from stages.settings import LoraConfig, OptimizerConfig, SamplingConfig

    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    roles = make_roles(options, device)
    optimizer = OptimizerConfig(learning_rate=3e-6, schedule="constant", eps=1e-5)
    config = PpoConfig(
        prompts=[Source("prompts.jsonl")], rollout_batch=options.batch, minibatches=1, inner_epochs=options.ppo_epochs,
        micro_batch=options.our_micro, kl_coef=0.05, optimizer=optimizer,
        value_optimizer=optimizer, sampling=SamplingConfig(options.response_len, 1.0, 64),
        lora=LoraConfig(options.lora, 2.0 * options.lora) if options.lora else None, precision=options.precision,
        trainable_layers=options.trainable_layers or None,
    )  # fmt: skip
    learner = make_learner(roles, config)
    part = Part(
        "reward_model",
        1.0,
        ModelReward(lambda rows: Scored(response_scores(roles.reward, rows), {}), 64, roles.as_reward),
        False,
    )
    n_updates = options.episodes // options.batch + 1
    rng = torch.Generator().manual_seed(1)
    drawing = rng if device.type == "cpu" else torch.Generator(device).manual_seed(1)
    vocabulary = roles.policy.config.vocab_size
    low = 32 if vocabulary > 1000 else 8
    prompts = torch.randint(low, vocabulary, (n_updates * options.batch, options.prompt_len), generator=rng).tolist()
    asked = [Prompt("p", "benchmark", prompt=(Message("user", "-"),))] * options.batch
    seconds = {"rollout": 0.0, "evaluate": 0.0, "update": 0.0}
    tokens, started = 0, 0.0
    profiler = contextlib.ExitStack()
    for i in range(n_updates):
        if i == 1:  # the first update is a warm-up
            if options.profile:
                profile = profiler.enter_context(torch.profiler.profile(with_flops=True))
            seconds, tokens, started = dict.fromkeys(seconds, 0.0), 0, time.perf_counter()
        clock = [time.perf_counter()]
        rollout = collect_rollout(
            roles.policy, prompts[i * options.batch : (i + 1) * options.batch], max_new_tokens=options.response_len,
            temperature=1.0, batch_size=64, stop_ids=[roles.tokenizer.eos_token_id] if options.stop == "eos" else [],
            pad_id=0, rng=drawing,
        )  # fmt: skip
        clock.append(now(device))
        rollout = roles.read_trunk(rollout, config, learner.fits.trunk, Path(tempfile.gettempdir()))
        scores = score_rollout([part], asked, ["-"] * options.batch, rollout)
        experience = evaluate_rollout(roles, rollout, scores, config, config.kl_coef)
        clock.append(now(device))
        update(learner, experience, None, config, shuffles(options.batch, rng))
        clock.append(now(device))
        for name, begin, end in zip(seconds, clock, clock[1:], strict=False):
            seconds[name] += end - begin
        tokens += int(rollout.lengths.sum())
    wall = time.perf_counter() - started
    profiler.close()
    episodes = (n_updates - 1) * options.batch
    figures = {"episodes_per_second": episodes / wall, "peak_memory": peak_memory(), "response_tokens": tokens}
    return {**figures, "seconds": seconds, **(where_time_goes(profile, options.threads) if options.profile else {})}


def on_gpu(device: str) -> bool:
    from policy.language_model import choose_device

    return choose_device(device).type == "cuda"


def now(device: Any) -> float:
    """The time, once the GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def where_time_goes(profile: Any, threads: int) -> dict[str, Any]:
    """Shares of the measured time by kind of operation, and the speed of matrix products and the machine's best."""
    import torch

    kinds = {
        "matrix products": r"aten::(mm|addmm|bmm|_addmm_activation)$",
        "attention": r"aten::_scaled_dot_product",
        "optimiser": r"aten::_fused_adam|linalg_vector_norm|_foreach",
    }
    time_of = dict.fromkeys([*kinds, "elementwise and the rest"], 0.0)
    flops = 0
    for event in profile.key_averages():
        kind = next((name for name, names in kinds.items() if re.match(names, event.key)), "elementwise and the rest")
        time_of[kind] += event.self_cpu_time_total
        flops += event.flops if kind == "matrix products" else 0
    a = torch.randn(1024, 1024)
    best = []
    for _ in range(20):
        started = time.perf_counter()
        a @ a
        best.append(2 * 1024**3 / (time.perf_counter() - started))
    total = sum(time_of.values())
    return {
        "shares": {name: value / total for name, value in time_of.items()},
        "gflop": flops / 1e9,
        "gflop_per_second": flops / 1e9 / (time_of["matrix products"] / 1e6),
        "best_gflop_per_second": max(best) / 1e9,
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="Python with TRL 1.12")
    parser.add_argument("--peer-script", type=Path, default=Path(__file__).with_name("ppo_peer.py"), help="TRL's side")
    add_options(parser)
    parser.add_argument("--lora", type=int, default=0, help="rank of our adapters; 0: none. TRL trains in full")
    parser.add_argument(
        "--trainable-layers", type=int, default=0, help="top layers that our side trains; 0: all. TRL trains in full"
    )
    parser.add_argument(
        "--our-micro", type=int, help="our --micro (default: the same, with --lora half); the gradient is the same"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="ours; TRL's is float32"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="ours; TRL takes a GPU if any"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--ours", action="store_true", help="run only our side and print its figures")
    parser.add_argument("--profile", action="store_true", help="with --ours: also report time by kind of operation")
    options = parser.parse_args()
    options.micro = min(options.micro, options.batch)
    options.our_micro = options.our_micro or (max(1, options.micro // 2) if options.lora else options.micro)
    if options.ours:
        print(json.dumps(run(options)))
        return
    if not options.peer_python or (options.lora and options.trainable_layers):
        parser.error(
            "give --peer-python, or --ours to run only our side; and at most one of --lora, --trainable-layers"
        )
    common = forward(options, SHARED)
    found = alternate(
        {
            "ours": [sys.executable, __file__, "--ours", *common, *forward(options, OURS)],
            "trl": [str(options.peer_python), str(options.peer_script), *common],
        },
        options.repeats,
    )
    ours, trl = found["ours"], found["trl"]
    short = {
        "episodes_per_second_ratio": median_ratio(
            [run["episodes_per_second"] for run in ours], [run["eps_per_s"] for run in trl]
        ),
        "peak_memory_ratio": median_ratio(
            [run["peak_memory"] for run in ours], [run["mem"]["peak_rss_mb"] * 2**20 for run in trl]
        ),
        "setting": {name: getattr(options, name) for name in (*SHARED, *OURS, "repeats")},
    }
    for i, (a, b) in enumerate(zip(ours, trl, strict=True)):
        told = [
            " ".join(f"{name} {value:.1f}" for name, value in split.items()) for split in (a["seconds"], b["split_s"])
        ]
        print(f"run {i + 1} seconds: ours {told[0]} | TRL {told[1]}")
    model = model_name(options.model)
    trained = f"top{options.trainable_layers}" if options.trainable_layers else "lora" if options.lora else "full"
    kind = trained + ("_ragged" if options.stop == "eos" else "")
    kind += ("_bfloat16" if options.precision == "bfloat16" else "") + ("_gpu" if on_gpu(options.device) else "")
    write_result(f"ppo_step_speed_{model}_{kind}", {**short, "runs": found})
    print(json.dumps(short))


if __name__ == "__main__":
    main()
