"""The C library's heap keeps what was freed in holes between what lives, and a process's memory is the sum of both.

On a CPU, backward passes leave gradients amid thousands of freed activations, and the next pass does not fit into the
holes: a process grows by a third of its tensors and more. Either the holes are given back before a pass, and every pass
asks the system for its pages again, one fault each; or everything freed is kept, and no pass asks at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

WORTH_IT = 2**28  # bytes free in the heap; for less the page faults cost more than they are worth
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's parameters
UNREACHED = 2**31 - 1  # bytes


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2; `fordblks` are the free bytes of the heap."""

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
    """From here on this process keeps what it frees, for its own next use. Where memory can be spared it is faster."""
    global _keeps
    mallopt = _function("mallopt") if device.type == "cpu" else None
    if mallopt is not None:
        # Else blocks of some megabytes and more come from the system each time, and go back to it.
        _keeps = all([mallopt(TRIM_THRESHOLD, UNREACHED), mallopt(MMAP_THRESHOLD, UNREACHED)])


def give_back_free_memory(device: torch.device) -> None:
    """Return the heap's holes to the system before a pass over a model on the CPU; nothing where there are none, or
    where they are kept."""
    if device.type != "cpu" or _keeps:
        return
    info, trim = _function("mallinfo2"), _function("malloc_trim")
    if info is not None and trim is not None and info().fordblks > WORTH_IT:
        trim(0)


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """One of glibc's, or None where the C library is another or older one."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes, found.restype = _SIGNATURES[name]
    return found
