"""Parts that the scans share: they go through time in blocks, and a layer's input enters one block at a time.

Whatever need not wait for the previous time step is computed for a whole block of steps: long enough for fast products,
and short enough that the time loop finds it in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512  # rows of T * B in a block


def block_steps(T: int, B: int) -> int:
    """Return the number of time steps per block of about BLOCK rows."""
    return max(1, min(T, BLOCK // B))


def blocks(T: int, B: int) -> list[slice]:
    """Cut T time steps into blocks."""
    steps = block_steps(T, B)
    return [slice(start, min(start + steps, T)) for start in range(0, T, steps)]


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether autograd needs the gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def tanh_(a: Tensor, one: Tensor) -> Tensor:
    """tanh in place as 2 sigmoid(2a) - 1: on a CPU torch's sigmoid is six times as fast as its tanh.

    The absolute error is about the precision's epsilon. ``one`` is 1 as a tensor, which is faster to subtract.
    """
    a.add_(a).sigmoid_()
    return a.add_(a).sub_(one)


class Input:
    """The products of a layer's input with its gates: x W' + b.

    x: vectors (T, B, I), or token ids, int64 (T, B), which stand for one-hot vectors: their products are look-ups.
    W (G, I); b (G,).
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor) -> None:
        self.x, self.W, self.b = x, W, b
        self.table = None if x.is_floating_point() else W.t().contiguous() + b

    def enter(self, steps: slice, gates: Tensor) -> None:
        """Fill gates (K, B, G) for a block of K steps."""
        x, out = self.x[steps].flatten(0, 1), gates.flatten(0, 1)
        if self.table is None:
            torch.addmm(self.b, x, self.W.t(), out=out)
        else:
            torch.index_select(self.table, 0, x, out=out)


class InputGradients:
    """The gradients of an Input, summed over blocks: of x, which is None for token ids, of W and of b."""

    def __init__(self, x: Tensor, W: Tensor) -> None:
        self.given, self.weights = x, W
        self.x = x.new_empty(x.shape) if x.is_floating_point() else None  # filled through flat views
        self.W = W.new_zeros(W.shape if self.x is not None else W.t().shape)
        self.b = W.new_zeros(len(W))

    def add(self, steps: slice, d_gates: Tensor) -> None:
        """Add a block of steps, from the gradient of what entered the gates, (K, B, G)."""
        x, d_rows = self.given[steps].flatten(0, 1), d_gates.flatten(0, 1)
        if self.x is None:
            self.W.index_add_(0, x, d_rows)
        else:
            torch.mm(d_rows, self.weights, out=self.x[steps].flatten(0, 1))
            self.W.addmm_(d_rows.t(), x)
        self.b += d_rows.sum(0)

    def all(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x, W and b."""
        return self.x, self.W if self.x is not None else self.W.t(), self.b
