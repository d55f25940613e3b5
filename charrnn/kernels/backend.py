"""The kernels that compute layers on a CPU: torch's own operations, or functions compiled by numba.

The choice applies to the whole process, like torch's own number of threads, and for the same reason: a layer deep
inside a model must use the same kernels and threads as the rest of the process. Set it with ``use``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Kernels = Literal["torch", "compiled"]
NEEDED = ("numba", "scipy", "threadpoolctl")  # the extra [fast]

_threads = 0  # of the compiled kernels; 0: not in use
_blas_limit: Any = None  # keeps OpenBLAS on one thread while the compiled kernels are in use


def available() -> bool:
    """Whether the libraries that the compiled kernels need are installed."""
    return all(find_spec(name) for name in NEEDED)


def use(kernels: Kernels, threads: int) -> None:
    """Compute with these kernels from now on, on this many threads; torch's other operations use as many."""
    global _threads, _blas_limit
    if kernels == "compiled" and _blas_limit is None:
        import scipy.linalg.cython_blas  # noqa: F401  loads the kernels' OpenBLAS: only a loaded library can be limited
        from threadpoolctl import threadpool_limits

        _blas_limit = threadpool_limits(1, "blas")  # each thread of the kernels computes its own products
    if kernels == "torch" and _blas_limit is not None:
        _blas_limit.restore_original_limits()
        _blas_limit = None
    torch.set_num_threads(threads)  # after the limits: setting and lifting them changes torch's number, too
    _threads = threads if kernels == "compiled" else 0


@contextmanager
def torch_only() -> Iterator[None]:
    """Compute with torch's operations inside this context."""
    global _threads
    before, _threads = _threads, 0
    try:
        yield
    finally:
        _threads = before


def threads() -> int:
    """Return the number of threads of the compiled kernels, or 0 if they are not in use."""
    return _threads


def compiled(x: Tensor) -> bool:
    """Whether the compiled kernels are in use and support tensors like x."""
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return bool(_threads) and supported and not torch.is_autocast_enabled("cpu")
