"""Tests reach no network, and compute in one thread: set before any library reads its environment."""

from __future__ import annotations

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are so small that threads wait for each other


from gpu_or_cpu import device, gpu  # noqa: F401
from small_recipe import chain, copy_of_chain, small_base  # noqa: F401
from tiny_models import tiny, tiny_base  # noqa: F401
