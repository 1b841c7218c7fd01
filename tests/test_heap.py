"""What was freed amid what lives goes back to the system, and nothing that lives changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

CPU_ONLY = """
import ctypes, sys, torch
from policy.memory.heap import WORTH_IT, _function, give_back_free_memory
if _function("mallinfo2") is None:
    sys.exit(7)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
PIECE = 2**16  # bytes: below what malloc maps by itself
pieces = [torch.full((PIECE // 4,), float(i)) for i in range(5 * WORTH_IT // 2 // PIECE)]
kept = pieces[::2]  # so every second piece is a hole
del pieces
before = resident()
give_back_free_memory(torch.device("meta"))  # any other device: nothing to do
untouched = before - resident()
give_back_free_memory(torch.device("cpu"))
freed = before - resident()
assert all((piece == 2 * i).all() for i, piece in enumerate(kept))
print(untouched / WORTH_IT, freed / WORTH_IT)
"""


KEPT = """
import resource, sys, torch
from policy.memory.heap import _function, keep_freed_memory
if _function("mallopt") is None:
    sys.exit(7)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(n) for n in (2**24, 2**20, 2**25)]  # 64, 4 and 128 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = [faults() for _ in range(3)]
keep_freed_memory(torch.device("cpu"))
print(before[-1], [faults() for _ in range(10)][-1])
"""


def test_kept_memory_is_used_again_without_a_page_fault() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    if done.returncode == 7:
        pytest.skip("the C library is not glibc")
    as_it_comes, kept = map(int, done.stdout.split())
    assert as_it_comes > 1000 and kept < 100


def test_holes_between_living_tensors_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CPU_ONLY], capture_output=True, text=True)
    if done.returncode == 7:
        pytest.skip("the C library is not glibc 2.33 or newer")
    untouched, freed = map(float, done.stdout.split())
    assert untouched < 0.1 and freed > 1.0  # of one and a quarter times WORTH_IT
