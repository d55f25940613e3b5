"""Products of a layer's input with its weights for a block of time steps, and their gradients."""

from __future__ import annotations

import numpy as np

from charrnn.kernels.cells import Array
from charrnn.kernels.compiled.arithmetic import compile
from charrnn.kernels.compiled.products import add, add_product, copy


@compile
def enter(x: Array, row: int, step: int, W: Array, gates: Array) -> None:
    """Fill gates (K, b, G) with the products for K time steps, starting at ``step``, and b rows, starting at ``row``.

    x: vectors (T, B, I), or token ids (T, B) in place of one-hot vectors. W (I, G).
    """
    K, b, G = gates.shape
    if x.ndim == 2:
        for k in range(K):
            for i in range(b):
                copy(W[x[step + k, row + i]], gates[k, i])
    else:
        np.dot(block_of(x, row, step, K, b), W, gates.reshape(K * b, G))


@compile
def leave(x: Array, row: int, step: int, W: Array, d_gates: Array, dx: Array, dW: Array, db: Array) -> None:
    """Backpropagate d_gates (K, b, G) to the input: fill dx, and add to the gradients dW and db (G,).

    For vectors, W and dW are (G, I), and dx is (T, B, I). For token ids, dW is (I, G), and dx is not filled.
    """
    K, b, G = d_gates.shape
    rows = d_gates.reshape(K * b, G)
    if x.ndim == 2:
        for k in range(K):
            for i in range(b):
                add(d_gates[k, i], dW[x[step + k, row + i]])
    else:
        add_product(rows, block_of(x, row, step, K, b), dW)
        d_block = np.dot(rows, W).reshape(K, b, -1)
        for k in range(K):
            dx[step + k, row : row + b] = d_block[k]
    add_rows(rows, db)


@compile
def block_of(x: Array, row: int, step: int, K: int, b: int) -> Array:
    """Return K time steps and b rows of vectors x (T, B, I) as a matrix (K * b, I)."""
    block = np.empty((K, b, x.shape[2]), x.dtype)
    for k in range(K):
        block[k] = x[step + k, row : row + b]
    return block.reshape(K * b, -1)


@compile
def add_rows(rows: Array, sums: Array) -> None:
    """Add all rows (N, G) to sums (G,)."""
    for i in range(len(rows)):
        add(rows[i], sums)
