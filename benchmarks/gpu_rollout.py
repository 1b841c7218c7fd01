"""Rollout tokens per second as a share of what the memory's bandwidth allows, for our loop and for ways to decode it
does not have yet: a static cache, CUDA graphs, torch.compile.

    python benchmarks/gpu_rollout.py [--shape smollm2|llama1b|tiny] [--rows 64] [--prompt-len 64] [--response-len 128]
        [--precisions float32 bfloat16] [--ways ours dynamic static graph compile] [--seconds 120] [--device auto]

To decode a token, every weight is read once for all rows (the input embedding only where it is also the output head),
and so are the keys and values of all tokens before it. These bytes, divided by the bandwidth measured here, are the
least time that a token takes. Weights are random. `ours` is PPO's own loop, in bfloat16 by autocast over float32
weights; the other ways read a copy of the weights in the type named. Each way must give the logits of `dynamic`, whose
largest difference is reported. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from gpu_device import AGREES, SHAPES, bandwidth, count_waits, make_model, seconds, wait  # noqa: E402

WAYS = ("ours", "dynamic", "static", "graph", "compile")
SETTLED = 3  # steps before a graph is captured


def bytes_per_token(model: Any, rows: int, prompt: int, response: int, value_bytes: int) -> float:
    """Mean bytes that a decoding step must read: weights once, and each row's keys and values so far."""
    config = model.config
    weights = sum(weight.numel() for weight in model.parameters())
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return value_bytes * (weights + rows * (prompt + response / 2) * of_token)


class Steps:
    """One way to decode: reads the prompts, then one token of every row at a time."""

    def __init__(self, way: str, model: Any, prompts: Any, longest: int) -> None:
        import torch
        from transformers import DynamicCache, StaticCache

        self.way, self.model, self.prompts, self.longest = way, model, prompts, longest
        self.fixed = way != "dynamic"
        cache = StaticCache(config=model.config, max_cache_len=longest) if self.fixed else None
        self.cache: Any = cache or DynamicCache(config=model.config)
        rows, device = len(prompts), prompts.device
        # A graph reads and writes the same memory at each replay, so these tensors hold all that changes.
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, 1, 1, longest, dtype=torch.bool, device=device)
        self.forward: Callable[[], Any] = self._forward
        if way == "compile":
            on_gpu = device.type == "cuda"
            how = {"mode": "reduce-overhead"} if on_gpu else {"backend": "aot_eager"}
            self.forward = torch.compile(self._forward, dynamic=False, **how)

    def _forward(self) -> Any:
        mask = self.seen if self.fixed else None
        return self.model(
            input_ids=self.ids, attention_mask=mask, position_ids=self.position, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    def read_prompts(self) -> Any:
        import torch

        n = self.prompts.shape[1]
        positions = torch.arange(n, device=self.prompts.device)
        mask = None
        if self.fixed:
            slots = torch.arange(self.longest, device=self.prompts.device)
            mask = (slots <= positions[:, None]).expand(len(self.prompts), 1, n, self.longest)
            self._rewind(0)
        logits = self.model(
            input_ids=self.prompts, attention_mask=mask, position_ids=positions[None], past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        self._begin(n)
        return logits

    def _begin(self, n: int) -> None:
        self.position.fill_(n)
        self.seen.zero_()
        self.seen[..., : n + 1] = True

    def _rewind(self, n: int) -> None:
        """Let the cache hold n tokens; what is beyond them is overwritten before it is read."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(n)

    def capture(self) -> None:
        """Settle, then put one step into a CUDA graph, or compile it, after the prompts have been read."""
        import torch

        n = self.prompts.shape[1]
        if self.way in ("graph", "compile"):
            side = torch.cuda.Stream() if self.way == "graph" else None
            wait(self.prompts.device)
            with torch.cuda.stream(side) if side is not None else nullcontext():
                for _ in range(SETTLED):
                    self.forward()
                    self._rewind(n)
            wait(self.prompts.device)
        if self.way == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._forward()
            self.forward = lambda: (graph.replay(), logits)[1]
        if self.fixed:
            self._rewind(n)
            self._begin(n)

    def __call__(self, tokens: Any) -> Any:
        self.ids.copy_(tokens)
        logits = self.forward()
        self.position += 1
        if self.fixed:
            self.seen.index_fill_(-1, self.position.flatten().clamp(max=self.longest - 1), True)
        return logits


def decode(steps: Steps, answers: Any, rng: Any, draw: bool = True) -> Any:
    """Read prompts and given answers (rows, response) token by token, drawing as sampling does; the last logits."""
    from policy.sampling.generate import draw as draw_tokens

    logits = steps.read_prompts()
    for i in range(answers.shape[1] - 1):
        if draw:
            draw_tokens(logits.float().softmax(-1), rng)
        logits = steps(answers[:, i : i + 1])
    return logits.float().clone()


def measure(options: argparse.Namespace, precision: str, speed: float, started: float) -> dict[str, Any]:
    """Each way's tokens per second and share of the limit, in one precision."""
    import torch

    from policy.precision import compute_in
    from policy.sampling.rollout import collect_rollout

    device = torch.device(options.device)
    rows, prompt, response = options.rows, options.prompt_len, options.response_len
    rng = torch.Generator(device).manual_seed(1)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    prompts = torch.randint(32, vocabulary, (rows, prompt), generator=rng, device=device)
    answers = torch.randint(32, vocabulary, (rows, response), generator=rng, device=device)
    model = make_model(options.shape, device)
    read = bytes_per_token(model, rows, prompt, response, 4 if precision == "float32" else 2)
    limit = rows * speed / read
    found: dict[str, Any] = {"bytes_per_step": read, "limit_tokens_per_second": limit, "ways": {}}
    wanted: Any = None
    for way in [way for way in WAYS if way in options.ways]:
        if time.perf_counter() - started > options.seconds:
            found["ways"][way] = {"skipped": "no time left"}
            continue
        if way == "graph" and device.type != "cuda":
            found["ways"][way] = {"skipped": "a CUDA graph needs a GPU"}
            continue
        if way == "ours":
            compute_in(model, precision)
            roll = partial(
                collect_rollout, model, prompts.tolist(), max_new_tokens=response, temperature=1.0, batch_size=rows,
                stop_ids=[], pad_id=0, rng=rng,
            )  # fmt: skip
            roll()  # warm-up; also tries how the architecture is read
            took = seconds(roll, device)
            waits = count_waits(roll, device)
            row: dict[str, Any] = {"waits_per_token": None if waits is None else waits / response}
        else:
            with torch.no_grad():
                model.to(getattr(torch, precision))
                steps = Steps(way, model, prompts, prompt + response)
                steps.read_prompts()
                prepared = time.perf_counter()
                steps.capture()
                row = {"preparation_seconds": time.perf_counter() - prepared} if way in ("graph", "compile") else {}

                def once(steps: Steps = steps, way: str = way, draw: bool = True) -> Any:
                    ready = steps if steps.fixed else Steps(way, model, prompts, prompt + response)
                    return decode(ready, answers, rng, draw)

                logits = once(draw=False)
                wanted = logits if wanted is None else wanted
                row["largest_difference"] = float((logits - wanted).abs().max() / wanted.abs().max())
                row["agrees"] = row["largest_difference"] <= AGREES[precision]
                took = seconds(once, device)
        rate = rows * response / took
        found["ways"][way] = {"tokens_per_second": rate, "share_of_limit": rate / limit, "seconds": took, **row}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rows", type=int, default=64, help="answers sampled together")
    parser.add_argument("--prompt-len", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--response-len", type=int, default=128, help="tokens of an answer; none ends early")
    parser.add_argument("--precisions", nargs="+", choices=AGREES, default=list(AGREES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=120, help="after these no further way is begun")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()

    import torch

    from policy.language_model import choose_device

    started = time.perf_counter()
    options.device = str(choose_device(options.device))
    speed = bandwidth(torch.device(options.device))
    found = {each: measure(options, each, speed, started) for each in options.precisions}
    print(json.dumps({"setting": vars(options), "bandwidth": speed, **found}))


if __name__ == "__main__":
    main()
