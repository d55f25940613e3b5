"""Set how this process computes: its device, precision, threads and memory.

Each function imports torch itself, because two of them must run before torch and numpy are loaded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from charrnn.errors import UserError

if TYPE_CHECKING:
    import torch

Report = Callable[[str], None]


def silent(line: str) -> None:
    """Ignore the line; a ``Report`` that shows nothing."""


# Devices


def choose_device(gpuid: int, report: Report, precision: str = "float32") -> torch.device:
    """Return GPU number ``gpuid`` (Apple's MPS is number 0), or the CPU for -1.

    If there is no GPU, number 0, the default, reports this and returns the CPU. Raises UserError for any other GPU that
    does not exist, and for float64 on MPS, which does not support it.
    """
    import torch

    if gpuid < 0:
        return torch.device("cpu")
    mps = torch.backends.mps.is_available()
    count = torch.cuda.device_count() or int(mps)
    if gpuid >= max(count, 1):
        existing = f"GPUs 0 to {count - 1}" if count > 1 else "only GPU 0" if count else "no GPU"
        raise UserError(f"-gpuid {gpuid}: this machine has {existing}; for the CPU use -gpuid -1")
    if not count:
        report("no GPU found, using the CPU (-gpuid -1 silences this)")
        return torch.device("cpu")
    if torch.cuda.device_count():
        torch.backends.cudnn.allow_tf32 = False  # by default it is on and rounds float32 factors in recurrent layers
        return torch.device("cuda", gpuid)
    if precision == "float64":
        raise UserError("-precision float64: Apple's MPS has no float64; use -precision float32, or -gpuid -1")
    return torch.device("mps")


# Precision


def weights_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights, optimizer state and hidden state.

    It is float32 except for float64: bf16 and tf32 only round the factors of products.
    """
    import torch

    return torch.float64 if precision == "float64" else torch.float32


def prepare(precision: str, device: torch.device, report: Report) -> None:
    """Set up this process for training in a precision.

    With tf32, a GPU rounds the factors of float32 products to 10 bits. Raises UserError for tf32 on any other device.
    With bf16 on a CPU without bf16 instructions, reports that training will be slow.
    """
    import torch

    if precision == "tf32":
        if device.type != "cuda":
            raise UserError("-precision tf32: needs a CUDA GPU; use float32, or bf16 on a CPU that supports it")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        report("this CPU has no bf16 instructions: training will be slower than with -precision float32")


def has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions (AVX512_BF16, AMX_BF16 or Arm's BF16). True if torch cannot tell."""
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or any("bf16" in name and bool(found) for name, found in capabilities.items())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context for the forward pass of a training step.

    With bf16, the factors of products are rounded to 8 bits and the products are summed in float32. With any other
    precision, the context does nothing.
    """
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


# Threads


# how long GNU OpenMP busy-waits, in iterations of its loop: a few tenths of a millisecond
SPIN_COUNT = "20000"
# with any of these set, the user has decided how OpenMP waits
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Shorten OpenMP's busy-waiting, unless the user has configured it. Call before torch is loaded.

    By default, each thread of GNU's OpenMP spins for 300,000 iterations, a few milliseconds, after every parallel
    operation of torch. Meanwhile nothing else can use its core, not even the threads of the compiled kernels. Threads
    that went to sleep at once would wake up too slowly for torch's next operation.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def one_thread() -> None:
    """Compute on one thread. With only a few rows at a time, as in sampling, a second thread would just wait.

    Call before numpy is loaded, because its OpenBLAS reads the number of threads only once, at that point.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


# Random numbers


def seed(number: int, device: torch.device | None = None) -> None:
    """Seed the random generators of torch, numpy and Python. A user's own model may use any of them.

    torch's are seeded on all devices, or only on the CPU and the given one.
    """
    import numpy as np
    import torch

    if device is None:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the same generators as plain values and tensors on the CPU."""
    import numpy as np
    import torch

    _, keys, *position = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    state["numpy"] = [torch.tensor(keys.tolist()), *position]
    state["python"] = [version, torch.tensor(words), gauss]
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what ``random_state`` returned. Generators that it does not include keep their state.

    Raises IndexError, KeyError, TypeError, ValueError or RuntimeError for anything else.
    """
    import numpy as np
    import torch

    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "numpy" in state:
        keys, position, *gauss = state["numpy"]
        # numpy does not check the position, and would read outside its keys
        if type(position) is not int or not 0 <= position <= len(_words(keys)):
            raise ValueError("the state of numpy's generator is damaged")
        np.random.set_state(("MT19937", _words(keys), position, *gauss))
    if "python" in state:
        version, words, gauss = state["python"]
        if gauss is not None and type(gauss) is not float:
            raise ValueError("the state of Python's generator is damaged")
        random.setstate((version, tuple(_words(words)), gauss))


def _words(tensor: torch.Tensor) -> list[int]:
    """Return 32-bit words as integers. Raises ValueError for anything else."""
    words: list[int] = tensor.tolist()
    if not all(type(word) is int and 0 <= word < 2**32 for word in words):
        raise ValueError("the state of a random generator is not made of 32-bit words")
    return words


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the random generators at the end, so that the block changes no later random number."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


# All of the above


@contextmanager
def unchanged(gpuid: int) -> Iterator[None]:
    """Restore at the end of the block what a run changes in this process: threads, kernels, precision, random state.

    The random state is that of Python, numpy and torch, on the CPU and on GPU number ``gpuid``, if it exists.
    """
    import torch

    from charrnn.kernels import backend

    threads, compiled = torch.get_num_threads(), backend.threads()
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    device = torch.device("cuda", gpuid) if 0 <= gpuid < torch.cuda.device_count() else torch.device("cpu")
    with same_random_numbers(device):
        try:
            yield
        finally:
            backend.use("compiled" if compiled else "torch", compiled or threads)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = tf32


# Memory


# a product of matrices starts the threads of numpy's and of torch's library; the bytes leave room for charrnn itself
LIBRARIES = "import numpy, torch; a = numpy.ones((256, 256)); b = torch.ones(256, 256); a @ a, b @ b, bytes(1 << 26)"


def check_memory_limit() -> None:
    """Raise UserError if a limit on this process's memory is too small to load numpy and torch.

    They would end the process with a message of their own, or with none, so another process tries to load them.
    """
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    trial = [sys.executable, "-c", LIBRARIES]
    if subprocess.run(trial, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise UserError(
            f"the memory of this process is limited to {limit / 1e6:,.0f} MB, too little to load PyTorch: "
            "raise the limit (ulimit -v) or remove it"
        )


def capacity(device: torch.device) -> int:
    """Return the total memory of the device in bytes, used or free."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if sys.platform == "win32":
        return sys.maxsize  # unknown, so running out of memory is reported only when it happens
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# the messages of torch's RuntimeErrors for a lack of memory on the CPU: on Unix, on Windows, and from C++
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|^std::bad_alloc$")


def ran_out(error: BaseException) -> bool:
    """Return whether Python, numpy or torch raised this error because memory ran out."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(OUT_OF_MEMORY.search(str(error)))


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for this process. Returns whether it succeeded.

    Each iteration frees the large tensors of the previous one and allocates new ones of the same sizes. By default
    glibc returns large blocks to the system, which must then fill every page of a new block with zeros. That costs
    thousands of page faults per iteration. Blocks that malloc keeps are simply reused. The process then holds on to its
    peak memory, which the next iteration needs anyway, and a little more for the gaps between blocks.

    Does nothing with any other C library, or if the environment configures malloc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or _malloc_configured():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def _malloc_configured() -> bool:
    """Return whether the environment sets MALLOC_..._ or glibc's tunables for malloc, or preloads another malloc."""
    variables = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    tunables, preloaded = (os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD"))
    return variables or "glibc.malloc" in tunables or "malloc" in preloaded
