"""Products of a part's few rows with recurrent weights, in panels small enough for the fast kernels of OpenBLAS.

numba's np.dot calls the OpenBLAS that comes with SciPy. For small matrices that has kernels which read both factors
where they lie, and others first copy them in another order. At 25 rows and 128 units the former reach the rate of
large products and the latter half of it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from charrnn.kernels.compiled.arithmetic import compile
from charrnn.kernels.compiled.parts import Array, array

SMALL = 1_000_000  # multiplications of the largest product that the fast kernels take
NARROW = 16


def panels(R: Tensor, rows: int) -> Array:
    """Recurrent weights R (G, H) as P panels of G's rows, (P, G / P, H), for products with that many rows of states.

    One panel where others would be narrower than NARROW.
    """
    G, H = R.shape
    widths = [width for width in range(NARROW, G + 1) if G % width == 0 and rows * H * width <= SMALL]
    return array(R).reshape(-1, max(widths, default=G), H)


def transposed_panels(R: Tensor, rows: int) -> Array:
    """The same panels, each transposed: (P, H, G / P)."""
    return panels(R, rows).swapaxes(1, 2).copy()


@compile
def add_states(h: Array, panels_t: Array, sums: Array, first: int) -> None:
    """Add h R' to G of the columns of sums (b, ...), from ``first``: h (b, H), R (G, H) as transposed panels."""
    width = panels_t.shape[2]
    product = np.empty((h.shape[0], width), h.dtype)
    for p in range(len(panels_t)):
        np.dot(h, panels_t[p], product)
        for i in range(len(h)):
            add(product[i], sums[i, first + p * width :])


@compile
def through(d_sums: Array, first: int, panels: Array, dh: Array) -> None:
    """dh (b, H) = d R for G of the columns of d_sums (b, ...), from ``first``; R (G, H) as panels."""
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
    """Add the product d_sums' values to dW (G, I); d_sums (N, G), values (N, I)."""
    product = np.dot(d_sums.T, values)
    for i in range(len(dW)):
        add(product[i], dW[i])


@compile
def columns(values: Array, first: int, count: int) -> Array:
    """Those columns of values (N, ...) in one piece, as products want them: (N, count)."""
    chosen = np.empty((len(values), count), values.dtype)
    for i in range(len(values)):
        copy(values[i, first:], chosen[i])
    return chosen


@compile
def add(vector: Array, to: Array) -> None:
    """Add the first numbers of vector to all of ``to``, or to as many as vector has.

    Loops like this one run along vectors whose indices begin at 0: others numba does not turn into vector instructions.
    """
    for j in range(min(len(vector), len(to))):
        to[j] += vector[j]


@compile
def copy(vector: Array, to: Array) -> None:
    """Likewise, in place of adding."""
    for j in range(min(len(vector), len(to))):
        to[j] = vector[j]
