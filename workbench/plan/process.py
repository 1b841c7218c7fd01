"""Estimates the memory of a process besides PPO's tensors: Python, its libraries, and heap fragmentation."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig

from policy.language_model import choose_device
from policy.memory.heap import WORTH_IT
from stages.ppo.settings import PpoConfig
from workbench.plan.passes import Models, policy_pass, value_pass
from workbench.plan.prediction import MemoryPlan

KEPT = 0.4  # measured: .32 and .45 with SmolLM2-135M, 16 and 8 episodes per pass


def peak_bytes() -> int:
    """Return this process's peak memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def process_bytes(config: PpoConfig) -> int:
    """Measure the bytes that Python and its libraries take in PPO. A tiny model is updated first, since libraries load
    code and reserve memory at first use."""
    shape = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2
    )
    lora = config.lora and replace(config.lora, targets="all-linear")
    models = Models(shape, replace(config, lora=lora, trainable_layers=None), torch.device("cpu"))
    for model, forward in ((models.policy, policy_pass), (models.value, value_pass)):
        forward(model, 16, 32, 32).sum().backward()
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.is_file() else peak_bytes()


def heap_holes(config: PpoConfig, plan: MemoryPlan) -> int:
    """Estimate heap fragmentation on a CPU in bytes. Without adapters the process keeps freed memory: `KEPT` of the
    largest phase's working memory, as measured. With adapters freed memory is returned before a pass once it exceeds
    `WORTH_IT` bytes, so the estimate is half of that, or half of the largest phase's working memory if less."""
    working = max(plan.phases.values())
    if choose_device(config.device).type != "cpu":
        return 0
    return int(KEPT * working) if config.lora is None else min(working, WORTH_IT) // 2
