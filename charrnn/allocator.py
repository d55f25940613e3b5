"""The C library's allocator, told to keep what training frees."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's numbers, in its malloc.h


def keep_freed_memory() -> bool:
    """Have glibc's malloc keep freed memory for later, in this process and from now on. Whether it will.

    Every iteration frees the large tensors of the one before and asks for as many. glibc gives large blocks back to
    the system, which then fills each page of the new ones with zeros: thousands of page faults an iteration. Kept, they
    are found again where they were. The price is that the process keeps its peak, which the next iteration needs
    anyway, and somewhat more for the gaps between blocks.

    Does nothing where the C library is another one, or where the environment itself says how malloc is to behave.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or _set_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def _set_by_user() -> bool:
    """Whether the environment sets MALLOC_..._ or glibc's tunables of malloc, or puts another malloc in its place."""
    own = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or "malloc" in os.environ.get("LD_PRELOAD", "")
