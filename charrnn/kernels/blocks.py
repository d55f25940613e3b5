"""Code that the scans share. A scan goes through time in blocks, and computes a layer's input products block by block.

Whatever does not depend on the previous time step is computed for a whole block of steps at once. A block is long
enough for fast products, and short enough to stay in the cache until the time loop needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512  # rows of T * B in a block


def block_steps(T: int, B: int) -> int:
    """Return the number of time steps in a block of about BLOCK rows."""
    return max(1, min(T, BLOCK // B))


def blocks(T: int, B: int) -> list[slice]:
    """Cut T time steps into blocks."""
    steps = block_steps(T, B)
    return [slice(start, min(start + steps, T)) for start in range(0, T, steps)]


def needs_gradients(*tensors: Tensor) -> bool:
    """Return whether autograd needs the gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def tanh_(a: Tensor, one: Tensor) -> Tensor:
    """Compute tanh in place as 2 sigmoid(2a) - 1, since torch's sigmoid on a CPU is six times as fast as its tanh.

    The absolute error is about the epsilon of the dtype. ``one`` is 1 as a tensor, which is faster to subtract.
    """
    a.add_(a).sigmoid_()
    return a.add_(a).sub_(one)


class Input:
    """The contribution of a layer's input to the sums inside its gates: x W' + b.

    x: vectors (T, B, I), or token ids, int64 (T, B), in place of one-hot vectors, whose products are look-ups.
    W (G, I); b (G,).
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor) -> None:
        self.x, self.W, self.b = x, W, b
        self.table = None if x.is_floating_point() else W.t().contiguous() + b

    def enter(self, steps: slice, gates: Tensor) -> None:
        """Fill gates (K, B, G) with x W' + b for a block of K steps."""
        x, out = self.x[steps].flatten(0, 1), gates.flatten(0, 1)
        if self.table is None:
            torch.addmm(self.b, x, self.W.t(), out=out)
        else:
            torch.index_select(self.table, 0, x, out=out)


class InputGradients:
    """The gradients of an Input's W and b, summed over blocks, and of its x, which is None for token ids."""

    def __init__(self, x: Tensor, W: Tensor) -> None:
        self.given, self.weights = x, W
        self.x = x.new_empty(x.shape) if x.is_floating_point() else None  # filled through flattened views
        self.W = W.new_zeros(W.shape if self.x is not None else W.t().shape)
        self.b = W.new_zeros(len(W))

    def add(self, steps: slice, d_gates: Tensor) -> None:
        """Add the gradients of a block of steps, given the gradient (K, B, G) of the sums from ``Input.enter``."""
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
