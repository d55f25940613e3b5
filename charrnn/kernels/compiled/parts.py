"""The rows of a minibatch in parts, threads that work on one each, and the gradients that the parts have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.kernels import backend, blocks

Array = NDArray[Any]
ROWS = 12  # of a part, about: with fewer, products slow down by more than a further thread gives
MOST = 8  # parts: each has gradients of the weights of its own


def parts(B: int) -> list[slice]:
    """The B rows in parts: the same ones whatever the number of threads, so that the sums are the same.

    As many as a power of 2, for even shares, and MOST at most: with ROWS rows or more in each, but two wherever they
    have four each.
    """
    count = 1 << max(1, min(B // ROWS, MOST), min(B // 4, 2)).bit_length() - 1
    bounds = [B * n // count for n in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def largest(rows: list[slice]) -> int:
    """The number of rows of the largest part."""
    return max(int(part.stop - part.start) for part in rows)


def block_steps(T: int, rows: int) -> int:
    """How many time steps are one block."""
    return min(T, max(1, blocks.BLOCK // rows))


def in_parallel(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks that let go of Python's lock on as many threads as were chosen, this one among them."""
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


def check(x: Tensor, inputs: int, *shapes: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises IndexError or ValueError for characters x or tensors that do not fit: compiled code does not look where an
    array ends, and takes numbers of one type."""
    if not x.is_floating_point() and x.numel():
        least, most = torch.aminmax(x)
        if least < 0 or most >= inputs:
            raise IndexError(f"characters from {least} to {most}, where there are {inputs}")
    for tensor, shape in shapes:
        if tensor.shape != shape:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)}, where {shape} fits")
        if tensor.dtype != shapes[0][0].dtype:
            raise ValueError(f"tensors of {tensor.dtype} and {shapes[0][0].dtype}, where one type is needed")


def array(tensor: Tensor) -> Array:
    """The tensor as an array, in the same memory if it lies there row by row."""
    return tensor.detach().contiguous().numpy()


def transposed(W: Tensor) -> Array:
    """The matrices (..., M, N), each transposed."""
    return W.detach().mT.contiguous().numpy()


def empty(like: Tensor, *shape: int) -> Array:
    """Memory that torch asks for in the main thread: there it is what an iteration before gave back."""
    return torch.empty(shape, dtype=like.dtype).numpy()


def zeros(like: Tensor, *shape: int) -> Array:
    return torch.zeros(shape, dtype=like.dtype).numpy()


def total(shares: Iterable[Array]) -> Tensor:
    """The sum of what the parts have, in their order."""
    first, *others = map(torch.from_numpy, shares)
    for other in others:
        first += other
    return first


class InputGradients:
    """The gradients of a layer's input: of x, W (G, I) and b (G,), as ``inputs.leave`` fills them."""

    def __init__(self, x: Tensor, W: Tensor, parts: int) -> None:
        self.vectors = x.is_floating_point()
        self.given = array(W) if self.vectors else transposed(W)  # what leave takes as W
        self.x = empty(W, *x.shape) if self.vectors else empty(W, 0, 0, 0)
        self.W = [zeros(W, *self.given.shape) for _ in range(parts)]
        self.b = [zeros(W, len(W)) for _ in range(parts)]

    def all(self) -> tuple[Tensor | None, Tensor, Tensor]:
        W = total(self.W)
        return torch.from_numpy(self.x) if self.vectors else None, W if self.vectors else W.t(), total(self.b)
