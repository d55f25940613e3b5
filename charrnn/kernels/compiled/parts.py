"""A minibatch cut into parts of its rows, so that threads can take different parts through all time steps.

Within a layer, no thread waits for another. Only at the end are the parts' weight gradients summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels import backend
from charrnn.kernels.blocks import block_steps
from charrnn.kernels.cells import Array

MIN_ROWS = 12  # per part: with fewer, products are slowed down more than another thread speeds them up
MAX_PARTS = 8  # limited because each part needs arrays for its own share of the weight gradients


def parts(B: int) -> list[slice]:
    """Cut B rows into parts. They do not depend on the number of threads, so the summed gradients do not either.

    The number of parts is a power of 2, so that threads get equal shares. Each part has at least MIN_ROWS rows, but 8
    rows or more always make at least two parts.
    """
    count = 1 << max(1, min(B // MIN_ROWS, MAX_PARTS), min(B // 4, 2)).bit_length() - 1
    bounds = [B * n // count for n in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def size(part: slice) -> int:
    """Return the number of rows in a part."""
    return int(part.stop - part.start)


def largest(rows: list[slice]) -> int:
    """Return the number of rows in the largest part."""
    return max(map(size, rows))


# A layer as an autograd function


def scan(forward: Callable[..., Any], backward: Callable[..., Any], *tensors: Tensor) -> Tensor:
    """Return the states of a layer after each time step, differentiable once.

    ``forward(rows, *tensors)`` returns the states and, for each part, a NamedTuple of arrays to keep.
    ``backward(rows, kept, dy, *tensors)`` returns the gradients of the tensors. The second tensor must be the state
    (B, H) before the first step.
    """
    y: Tensor = _Scan.apply(forward, backward, *tensors)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], *tensors: Tensor) -> Tensor:
        rows = parts(len(tensors[1]))
        y, kept = forward(rows, *tensors)
        ctx.rows, ctx.kept, ctx.given, ctx.pass_back = rows, type(kept[0]), len(tensors), backward
        ctx.save_for_backward(*tensors, *(torch.from_numpy(array) for part in kept for array in part))
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[: ctx.given], iter(ctx.saved_tensors[ctx.given :])
        kept = [ctx.kept(*(array(next(saved)) for _ in ctx.kept._fields)) for _ in ctx.rows]
        return None, None, *ctx.pass_back(ctx.rows, kept, dy, *tensors)


def check(x: Tensor, inputs: int, *shapes: tuple[Tensor, tuple[int, ...]]) -> None:
    """Check token ids, shapes and dtypes, since compiled code would read past the end of an array.

    Raises IndexError unless token ids x are in [0, inputs), and ValueError if a tensor does not have the shape given
    with it or the dtype of the first tensor.
    """
    if not x.is_floating_point() and x.numel():
        least, most = torch.aminmax(x)
        if least < 0 or most >= inputs:
            raise IndexError(f"token ids from {least} to {most}, but the layer has {inputs} inputs")
    for tensor, shape in shapes:
        if tensor.shape != shape:
            raise ValueError(f"a tensor has shape {tuple(tensor.shape)}, but the layer needs {shape}")
        if tensor.dtype != shapes[0][0].dtype:
            raise ValueError(f"tensors of {tensor.dtype} and {shapes[0][0].dtype}: all dtypes must be equal")


# Threads


def for_each_part(
    kernel: Callable[..., None], rows: list[slice], T: int, shared: Iterable[Any], *own: Sequence[Any]
) -> None:
    """Call a compiled kernel for each part, on the chosen number of threads.

    The kernel's arguments are the part's first row, the time steps per block, the shared arguments, and the part's own.
    """
    in_parallel(
        partial(kernel, part.start, block_steps(T, size(part)), *shared, *of_part)
        for part, *of_part in zip(rows, *own, strict=True)
    )


def in_parallel(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks that release Python's lock on the chosen number of threads, including this one."""
    tasks = list(tasks)
    threads = min(backend.threads(), len(tasks)) or 1
    bounds = [len(tasks) * n // threads for n in range(threads + 1)]
    first, *others = (tasks[start:stop] for start, stop in pairwise(bounds))
    waiting = [_workers(threads - 1).submit(_run, share) for share in others]
    try:
        _run(first)
    finally:
        for other in waiting:
            other.result()


def _run(tasks: list[Callable[[], None]]) -> None:
    for task in tasks:
        task()


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="charrnn-kernel")


# Arrays


def array(tensor: Tensor) -> Array:
    """Return the tensor as a contiguous array, in the same memory if possible."""
    return tensor.detach().contiguous().numpy()


def transposed(W: Tensor) -> Array:
    """Return each matrix of W (..., M, N) transposed, as a contiguous array."""
    return W.detach().mT.contiguous().numpy()


def empty(like: Tensor, *shape: int) -> Array:
    """Allocate in the main thread, where the allocator reuses the previous iteration's memory."""
    return torch.empty(shape, dtype=like.dtype).numpy()


def zeros(like: Tensor, *shape: int) -> Array:
    """Allocate zeros in the main thread, for the same reason."""
    return torch.zeros(shape, dtype=like.dtype).numpy()


def totals(shares: Sequence[tuple[Array, ...]]) -> list[Tensor]:
    """Return each gradient, summed over the parts' shares in the order of the parts."""
    sums = [torch.from_numpy(share) for share in shares[0]]
    for others in shares[1:]:
        for total, share in zip(sums, others, strict=True):
            total += torch.from_numpy(share)
    return sums


class InputWeights:
    """Input weights W (G, I) and an array for the gradient of the input x, in the form that ``inputs.leave`` takes."""

    def __init__(self, x: Tensor, W: Tensor) -> None:
        self.vectors = x.is_floating_point()
        self.W = array(W) if self.vectors else transposed(W)
        self.x = empty(W, *x.shape) if self.vectors else empty(W, 0, 0, 0)

    def result(self, dW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of x, which is None for token ids, and of W (G, I)."""
        return (torch.from_numpy(self.x), dW) if self.vectors else (None, dW.t())
