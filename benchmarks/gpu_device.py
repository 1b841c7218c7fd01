"""The models that the GPU benchmarks draw, and what their device can do at best: the bandwidth of its memory and the
speed of its matrix products, measured.

    python benchmarks/gpu_device.py [--device auto]

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

# Published shapes; the weights are drawn.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    },
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    },
    "llama1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
    },
}  # fmt: skip
AGREES = {"float32": 1e-3, "bfloat16": 5e-2}  # largest difference of logits, relative to the largest logit


def config_of(shape: str) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPES[shape])


def make_model(shape: str, device: Any) -> Any:
    """A language model of this shape with random weights, made on the device, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with device:
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.float32).eval()


def wait(device: Any) -> None:
    """Let the GPU finish what it has been given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: Any, repeats: int = 1) -> float:
    """Mean seconds of `work`, which has run once before."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - started) / repeats


def bandwidth(device: Any) -> float:
    """Bytes per second that a copy within the device's memory reads and writes together."""
    import torch

    source = torch.zeros(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device, 20)


def product_speed(device: Any, precision: str) -> float:
    """Floating-point operations per second of a large square matrix product."""
    import torch

    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    a @ b
    return 2 * n**3 / seconds(lambda: a @ b, device, 10 if precision == "bfloat16" else 3)


def count_waits(work: Callable[[], Any], device: Any) -> int | None:
    """How often `work` makes the processor wait for the GPU, as torch counts it; None on a CPU."""
    import torch

    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in told)


def figures(device: Any) -> dict[str, Any]:
    """The device's name and size, its measured speeds, and the libraries."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bandwidth_gb_per_second": bandwidth(device) / 1e9,
        **{f"{name}_tflop_per_second": product_speed(device, name) / 1e12 for name in AGREES},
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"name": about.name, "memory_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()

    from policy.language_model import choose_device

    print(json.dumps(figures(choose_device(options.device))))


if __name__ == "__main__":
    main()
