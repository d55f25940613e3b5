"""The device that a command computes on."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from charrnn.errors import UserError


def choose_device(gpuid: int, report: Callable[[str], None], precision: str = "float32") -> torch.device:
    """The GPU of that number (Apple's MPS counts as number 0), or the CPU for -1.

    With the default number 0 and no GPU, says so and returns the CPU. Raises UserError for a GPU that is
    not there, and for float64 on MPS, which lacks it.
    """
    if gpuid < 0:
        return torch.device("cpu")
    mps = torch.backends.mps.is_available()
    count = torch.cuda.device_count() or int(mps)
    if gpuid >= max(count, 1):
        there = f"GPUs 0 to {count - 1}" if count > 1 else "GPU 0 alone" if count else "no GPU"
        raise UserError(f"-gpuid {gpuid}: this machine has {there}; -gpuid -1 computes on the CPU")
    if not count:
        report("no GPU here: computing on the CPU (-gpuid -1 says so without this line)")
        return torch.device("cpu")
    if torch.cuda.device_count():
        torch.backends.cudnn.allow_tf32 = False  # or its recurrent layers would round float32's factors unasked
        return torch.device("cuda", gpuid)
    if precision == "float64":
        raise UserError("Apple's MPS has no float64: use -precision float32, or -gpuid -1 for the CPU")
    return torch.device("mps")


def ran_out(error: BaseException) -> bool:
    """Whether this is how Python, numpy or torch say that memory has run out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text or "bad_alloc" in text


def capacity(device: torch.device) -> int:
    """All the memory of the device in bytes, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if sys.platform == "win32":
        return sys.maxsize  # not worth a way of its own: running out is explained as well
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def weights_dtype(precision: str) -> torch.dtype:
    """Of weights, optimizer and carried sums: float64, and float32 for all others, whose products alone are shorter."""
    return torch.float64 if precision == "float64" else torch.float32


def prepare(precision: str, device: torch.device, report: Callable[[str], None]) -> None:
    """Set up this process for training in that precision.

    tf32: float32 whose products on the GPU round their factors to 10 bits. Raises UserError for it elsewhere. On a CPU
    without instructions for bf16, says so.
    """
    if precision == "tf32":
        if device.type != "cuda":
            raise UserError("-precision tf32: only a CUDA GPU has it; use float32, or bf16 on a CPU that has that")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        report("this CPU has no instructions for bf16: training will be slower than with -precision float32")


def has_bf16() -> bool:
    """Whether the CPU computes in bf16 itself (AVX512_BF16, AMX_BF16 or Arm's BF16). True where torch cannot tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any("bf16" in name and bool(there) for name, there in capabilities.items())


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What a training step's forward pass runs in. bf16: products of values rounded to 8 bits, the sums in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
