"""The choice of the kernels that compute layers on a CPU: torch's own operations, or functions compiled by numba.

``use`` makes the choice for the whole process, as torch does with its number of threads: a layer deep inside a model
must use the same kernels and threads as the rest of the process.
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

_threads = 0  # number of threads of the compiled kernels; 0 if they are not in use
_blas_limit: Any = None  # keeps OpenBLAS on one thread while the compiled kernels are in use


def available() -> bool:
    """Return whether the libraries that the compiled kernels need are installed."""
    return all(find_spec(name) for name in NEEDED)


def use(kernels: Kernels, threads: int) -> None:
    """Use these kernels from now on, with this many threads. torch's other operations get as many threads."""
    global _threads, _blas_limit
    if kernels == "compiled" and _blas_limit is None:
        import scipy.linalg.cython_blas  # noqa: F401  loads the kernels' OpenBLAS: only a loaded library can be limited
        from threadpoolctl import threadpool_limits

        _blas_limit = threadpool_limits(1, "blas")  # each thread of the kernels computes its own products
    if kernels == "torch" and _blas_limit is not None:
        _blas_limit.restore_original_limits()
        _blas_limit = None
    torch.set_num_threads(threads)  # last, since setting or lifting the limits also changes torch's number of threads
    _threads = threads if kernels == "compiled" else 0


@contextmanager
def torch_only() -> Iterator[None]:
    """Compute only with torch's operations inside this context."""
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
    """Return whether the compiled kernels are in use and support tensors like x."""
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return bool(_threads) and supported and not torch.is_autocast_enabled("cpu")
