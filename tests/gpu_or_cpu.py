"""The device of the tests marked gpu: a GPU, or the one that TRIPTYCH_TEST_DEVICE names, to rehearse them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="session")
def device() -> torch.device:
    import torch

    named = os.environ.get("TRIPTYCH_TEST_DEVICE")
    if named is None and not torch.cuda.is_available():
        pytest.skip("needs a GPU; rehearse it with TRIPTYCH_TEST_DEVICE=cpu")
    return torch.device(named or "cuda")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """A real one."""
    if device.type != "cuda":
        pytest.skip("only a GPU can tell")
    return device


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
