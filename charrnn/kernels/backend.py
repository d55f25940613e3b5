"""Which kernels compute layers on a CPU: those in torch alone, or those that numba compiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Kernels = Literal["torch", "compiled"]
NEEDED = ("numba", "scipy", "threadpoolctl")  # the extra [fast]

_threads = 0  # of the compiled kernels; 0: they are not in use
_limits: Any = None  # on the threads of OpenBLAS, while the compiled kernels are in use
_asked = False


def available() -> bool:
    """Whether what the compiled kernels need is installed."""
    return all(find_spec(name) for name in NEEDED)


def use(kernels: Kernels, threads: int) -> None:
    """From now on compute with those kernels, and with that many threads, as torch for what stands around them."""
    global _threads, _limits
    torch.set_num_threads(threads)
    if kernels == "compiled" and _limits is None:
        import scipy.linalg.cython_blas  # noqa: F401  the library of the kernels' products: loaded, or it has no limit
        from threadpoolctl import threadpool_limits

        _limits = threadpool_limits(1, "blas")  # each of the kernels' threads computes its products alone
    if kernels == "torch" and _limits is not None:
        _limits.restore_original_limits()
        _limits = None
    _threads = threads if kernels == "compiled" else 0


@contextmanager
def torch_alone() -> Iterator[None]:
    """While it lasts, compute with the kernels in torch."""
    global _threads
    before, _threads = _threads, 0
    try:
        yield
    finally:
        _threads = before


def threads() -> int:
    """How many threads the compiled kernels have; 0 where torch computes."""
    return _threads


def compiled(x: Tensor) -> bool:
    """Whether a compiled kernel is to compute on tensors like x."""
    global _asked
    _asked = True
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return bool(_threads) and fits and not torch.is_autocast_enabled("cpu")


def asked() -> bool:
    """Whether anything that was computed has a compiled kernel, since this was last called."""
    global _asked
    was, _asked = _asked, False
    return was
