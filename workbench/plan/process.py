"""What a process holds beside PPO's tensors: Python, its libraries, and the holes in the C library's heap."""

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

KEPT = 0.4  # .32 and .45 with SmolLM2-135M, 16 and 8 episodes a pass


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def process_bytes(config: PpoConfig) -> int:
    """Python and its libraries as PPO needs them: found after it has updated a model of no size, since much is loaded
    and set aside at first use."""
    shape = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2
    )
    lora = config.lora and replace(config.lora, targets="all-linear")
    models = Models(shape, replace(config, lora=lora), torch.device("cpu"))
    for model, forward in ((models.policy, policy_pass), (models.value, value_pass)):
        forward(model, 16, 32, 32).sum().backward()
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.is_file() else peak_bytes()


def heap_holes(config: PpoConfig, plan: MemoryPlan) -> int:
    """On a CPU, room freed amid what lives. Without adapters it is kept, and `KEPT` of what a phase works with is
    what was measured. With them it is given back before a pass from `WORTH_IT` bytes on, so there is between nothing
    and that; half of it is taken, where so much is freed at all."""
    working = max(plan.phases.values())
    if choose_device(config.device).type != "cpu":
        return 0
    return int(KEPT * working) if config.lora is None else min(working, WORTH_IT) // 2
