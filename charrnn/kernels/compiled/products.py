"""Products of a part's few rows with recurrent weights, cut into panels small enough for OpenBLAS's fast kernels.

numba's np.dot calls the OpenBLAS that comes with SciPy. Its kernels for small matrices read both factors in place,
while the others first copy them into a different order. For 25 rows and 128 units, the kernels for small matrices reach
the speed of large products, and the others half of that.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from charrnn.kernels.cells import Array
from charrnn.kernels.compiled.arithmetic import compile
from charrnn.kernels.compiled.parts import array

SMALL = 1_000_000  # multiplications in the largest product that the fast kernels accept
NARROW = 16  # the fewest rows of a panel: with fewer, products are slow again


def panels(R: Tensor, rows: int) -> Array:
    """Cut recurrent weights R (G, H) into P panels, (P, G / P, H), for products with this many rows of states.

    R stays in one panel if every way to cut it gives panels narrower than NARROW or too large.
    """
    G, H = R.shape
    widths = [width for width in range(NARROW, G + 1) if G % width == 0 and rows * H * width <= SMALL]
    return array(R).reshape(-1, max(widths, default=G), H)


def transposed_panels(R: Tensor, rows: int) -> Array:
    """Return the panels of R, each transposed: (P, H, G / P)."""
    return panels(R, rows).swapaxes(1, 2).copy()


@compile
def add_states(h: Array, panels_t: Array, sums: Array, first: int) -> None:
    """Add h R' to the G columns of sums (b, ...) from ``first`` on. h (b, H); R (G, H) in transposed panels."""
    width = panels_t.shape[2]
    product = np.empty((h.shape[0], width), h.dtype)
    for p in range(len(panels_t)):
        np.dot(h, panels_t[p], product)
        for i in range(len(h)):
            add(product[i], sums[i, first + p * width :])


@compile
def through(d_sums: Array, first: int, panels: Array, dh: Array) -> None:
    """Fill dh (b, H) with d R, where d is the G columns of d_sums (b, ...) from ``first`` on. R (G, H) in panels."""
    b, width = len(dh), panels.shape[1]
    d, product = np.empty((b, width), dh.dtype), np.empty(dh.shape, dh.dtype)
    for p in range(len(panels)):
        for i in range(b):
            copy(d_sums[i, first + p * width :], d[i])
        if p == 0:
            np.dot(d, panels[p], dh)
        else:
            np.dot(d, panels[p], product)
            for i in range(b):
                add(product[i], dh[i])


@compile
def add_product(d_sums: Array, values: Array, dW: Array) -> None:
    """Add the transpose of d_sums (N, G) times values (N, I) to dW (G, I)."""
    product = np.dot(d_sums.T, values)
    for i in range(len(dW)):
        add(product[i], dW[i])


@compile
def columns(values: Array, first: int, count: int) -> Array:
    """Return ``count`` columns of values (N, ...), from ``first`` on, as the contiguous array that products need."""
    chosen = np.empty((len(values), count), values.dtype)
    for i in range(len(values)):
        copy(values[i, first:], chosen[i])
    return chosen


@compile
def add(vector: Array, to: Array) -> None:
    """Add a vector to another, up to the length of the shorter one.

    All such loops begin at index 0, because numba turns no others into vector instructions.
    """
    for j in range(min(len(vector), len(to))):
        to[j] += vector[j]


@compile
def copy(vector: Array, to: Array) -> None:
    """Copy a vector to another, up to the length of the shorter one."""
    for j in range(min(len(vector), len(to))):
        to[j] = vector[j]
