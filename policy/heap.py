"""The C library's heap keeps what was freed in holes between what lives, and a process's memory is the sum of both.

On a CPU, backward passes leave gradients amid thousands of freed activations, and the next pass does not fit into the
holes: a process grows to twice its tensors. Returning their pages to the system takes a few hundredths of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

WORTH_IT = 2**28  # bytes free in the heap; for less the page faults cost more than they are worth


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2; `fordblks` are the free bytes of the heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


@cache
def _glibc() -> tuple[Callable[[], _MallocInfo], Callable[[int], int]] | None:
    """(mallinfo2, malloc_trim), or None where the C library is another or older one."""
    try:
        library = ctypes.CDLL(None)
        info, trim = library.mallinfo2, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    info.restype, trim.argtypes = _MallocInfo, [ctypes.c_size_t]
    return info, trim


def give_back_free_memory(device: torch.device) -> None:
    """Return the heap's holes to the system before a pass over a model on the CPU; nothing where there are none."""
    found = _glibc() if device.type == "cpu" else None
    if found is not None:
        info, trim = found
        if info().fordblks > WORTH_IT:
            trim(0)
