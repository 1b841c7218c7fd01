"""Controls fragmentation of the C library's heap: freed memory between live blocks still counts as the process's.

On a CPU, backward passes leave gradients between thousands of freed activations, and the next pass does not fit into
the gaps, so the process grows to a third more than its tensors, or larger. There are two remedies: return the gaps to
the system before each pass, which then page-faults once for each page, or keep all freed memory and avoid the faults.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

WORTH_IT = 2**28  # bytes free in the heap; returning less costs more in page faults than it gains
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's parameters
UNREACHED = 2**31 - 1  # bytes


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2; `fordblks` is the number of free bytes in the heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "mallopt": ([ctypes.c_int, ctypes.c_int], ctypes.c_int),
    "mallinfo2": ([], _MallocInfo),
    "malloc_trim": ([ctypes.c_size_t], ctypes.c_int),
}

_keeps = False


def keep_freed_memory(device: torch.device) -> None:
    """Make this process keep freed memory for its own later use: faster, but it takes more memory. CPU only."""
    global _keeps
    mallopt = _function("mallopt") if device.type == "cpu" else None
    if mallopt is not None:
        # By default, blocks of several megabytes are requested from the system and returned to it each time.
        _keeps = all([mallopt(TRIM_THRESHOLD, UNREACHED), mallopt(MMAP_THRESHOLD, UNREACHED)])


def give_back_free_memory(device: torch.device) -> None:
    """Return the heap's free memory to the system before a pass over a model on the CPU. Does nothing if there is
    little of it, or after `keep_freed_memory`."""
    if device.type != "cpu" or _keeps:
        return
    info, trim = _function("mallinfo2"), _function("malloc_trim")
    if info is not None and trim is not None and info().fordblks > WORTH_IT:
        trim(0)


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """A function of glibc, or None if the C library is a different or an older one."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes, found.restype = _SIGNATURES[name]
    return found
