"""Keep the C library's memory allocator from returning freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**31 - 1
LARGE = 2**30


@cache
def keep_freed_memory() -> bool:
    """Make glibc reuse large blocks instead of returning them to the system; done once per process.

    Gradients of a stack of clients are blocks of megabytes that live for one step. By default glibc maps such a block
    from the system and unmaps it when it is freed, so every step pays a page fault for each 4 KiB it writes, which
    takes a large part of a small network's step. With a high threshold the block comes from the heap, and
    the heap is not trimmed when the block is freed, so the next step gets the same pages again. The price: the process
    keeps up to 2 GiB that it no longer uses.

    Returns:
        Whether it was done. It is not on other systems or C libraries, nor if the user set ``MALLOC_...`` variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP))
