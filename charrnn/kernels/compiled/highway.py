"""One recurrent highway layer over all time steps: charrnn.kernels.highway, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from charrnn.kernels.cells import Array
from charrnn.kernels.compiled import parts
from charrnn.kernels.compiled.arithmetic import compile, one, sigmoid, tanh
from charrnn.kernels.compiled.inputs import add_rows, block_of
from charrnn.kernels.compiled.parts import array, empty, largest, size, transposed, zeros
from charrnn.kernels.compiled.products import add, add_product, add_states, panels, through, transposed_panels


class Weights(NamedTuple):
    """The weights as the products read them. On an axis of size 2, the candidate comes before the transform gate."""

    W: Array  # input weights (2, I, S); for the backward pass (2, S, I)
    R: Array  # recurrent weights in panels (D, 2, P, ...), transposed for the forward pass
    b: Array  # (D, 2, 1, S)
    n: Array  # masks on the state (M, B, S); M is 0 if there are none


class Kept(NamedTuple):
    """The values that the forward pass keeps for a part's b rows, each (D, T, b, S)."""

    entering: Array  # the state that enters each depth
    h: Array
    t: Array


class Shares(NamedTuple):
    """A part's share of the weight gradients."""

    W: Array
    R: Array
    b: Array


def scan(x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None) -> Tensor:
    """Return the same as charrnn.kernels.highway.scan. Differentiable once."""
    (M, T, B, I), S, D = x.shape, s.shape[-1], len(R)
    layer = ((s, (B, S)), (W, (2, I, S)), (R, (D, 2, S, S)), (b, (D, 2, 1, S)))
    parts.check(x, I, *layer, (x, (M, T, B, I)), *([] if n is None else [(n, (len(n), B, S))]))
    for masks in (M, M if n is None else len(n)):
        if masks not in (1, 2):
            raise ValueError(f"masks for {masks} gates: there must be one for each of the 2 gates, or one for both")
    return parts.scan(forward_pass, backward_pass, x, s, W, R, b, s.new_empty(0, B, S) if n is None else n)


def forward_pass(
    rows: list[slice], x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor
) -> tuple[Array, list[Kept]]:
    (T, B), (D, _, S, _) = x.shape[1:3], R.shape
    y = empty(s, T, B, S)
    kept = [Kept(*(empty(s, D, T, size(part), S) for _ in Kept._fields)) for part in rows]
    recurrent = acting_from_the_right(R, largest(rows), transposed_panels)
    weights = Weights(array(W), recurrent, array(b), array(n))
    parts.for_each_part(forward, rows, T, (array(x), array(s), weights, y), kept)
    return y, kept


def backward_pass(
    rows: list[slice], kept: list[Kept], dy: Tensor, x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor
) -> tuple[Tensor | None, ...]:
    recurrent = acting_from_the_right(R, largest(rows), panels)
    weights = Weights(transposed(W), recurrent, array(b), array(n))
    shares = [Shares(*(zeros(like, *like.shape) for like in (W, R, b))) for _ in rows]
    dx, ds = empty(x, 2, *x.shape[1:]), empty(s, *s.shape)
    parts.for_each_part(backward, rows, len(dy), (array(x), array(dy), weights, dx, ds), kept, shares)
    d_x = torch.from_numpy(dx)
    return d_x if len(x) == 2 else d_x.sum(0, keepdim=True), torch.from_numpy(ds), *parts.totals(shares), None


def acting_from_the_right(R: Tensor, rows: int, cut: Callable[[Tensor, int], Array]) -> Array:
    """Cut the weights R (D, 2, S, S), whose products are s R, not s R', into panels: (D, 2, P, ...)."""
    return np.stack([[cut(gate.mT, rows) for gate in depth] for depth in R])


@compile
def forward(row: int, K: int, x: Array, s: Array, weights: Weights, y: Array, kept: Kept) -> None:
    """Run a part's rows, from ``row``, through all time steps. Write the states to y (T, B, S), and fill ``kept``."""
    W, R, bias, n = weights
    entering, h, t = kept
    D, T, b, S = h.shape
    masked = np.empty((b, S), s.dtype)
    state = s[row : row + b].copy()
    for start in range(0, T, K):
        stop = min(T, start + K)
        np.dot(block_of(x[0], row, start, stop - start, b), W[0], h[0, start:stop].reshape(-1, S))
        np.dot(block_of(x[-1], row, start, stop - start, b), W[1], t[0, start:stop].reshape(-1, S))
        for step in range(start, stop):
            for d in range(D):
                entering[d, step] = state
                for gate in range(2):
                    sums = h[d, step] if gate == 0 else t[d, step]
                    if d:
                        sums[:] = 0
                    if len(n):
                        for i in range(b):
                            multiply(state[i], n[gate * (len(n) - 1), row + i], masked[i])
                        add_states(masked, R[d, gate], sums, 0)
                    else:
                        add_states(state, R[d, gate], sums, 0)
                for i in range(b):
                    highway(bias[d, 0, 0], bias[d, 1, 0], state[i], h[d, step, i], t[d, step, i])
            y[step, row : row + b] = state


@compile
def highway(h_bias: Array, t_bias: Array, s: Array, h: Array, t: Array) -> None:
    """Compute one depth of one row in place: turn the sums in h and t (S,) into gates, and s into the new state."""
    for j in range(len(s)):
        h[j] = tanh(h[j] + h_bias[j])
    for j in range(len(s)):
        t[j] = sigmoid(t[j] + t_bias[j])
    for j in range(len(s)):
        s[j] += t[j] * (h[j] - s[j])


@compile
def backward(
    row: int, K: int, x: Array, dy: Array, weights: Weights, dx: Array, ds: Array, kept: Kept, shares: Shares
) -> None:
    """Fill a part's rows in ds (B, S) and dx (2, T, B, I), and add to its share of the weight gradients."""
    D, T, b, S = kept.h.shape
    # gradients of the sums inside h and t, for a block of steps
    dh, dt = np.empty((D, K, b, S), ds.dtype), np.empty((D, K, b, S), ds.dtype)
    d_state = np.zeros((b, S), ds.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        steps = min(T - start, K)
        for k in range(steps - 1, -1, -1):
            for i in range(b):
                add(dy[start + k, row + i], d_state[i])
            step_backward(start + k, k, row, weights, kept, d_state, dh, dt)
        for gate in range(2):
            block_gradients(gate, start, steps, row, x, weights, kept, dh if gate == 0 else dt, dx, shares)
    ds[row : row + b] = d_state


@compile
def step_backward(step: int, k: int, row: int, weights: Weights, kept: Kept, ds: Array, dh: Array, dt: Array) -> None:
    """Backpropagate through all depths of one step, the k-th of its block: fill dh and dt, and update ds (b, S)."""
    entering, h, t = kept
    n, b = weights.n, len(ds)
    by_h, by_t = np.empty(ds.shape, ds.dtype), np.empty(ds.shape, ds.dtype)
    for d in range(len(h) - 1, -1, -1):
        for i in range(b):
            highway_backward(h[d, step, i], t[d, step, i], entering[d, step, i], ds[i], dh[d, k, i], dt[d, k, i])
        through(dh[d, k], 0, weights.R[d, 0], by_h)
        through(dt[d, k], 0, weights.R[d, 1], by_t)
        for i in range(b):
            if len(n):
                multiply(by_h[i], n[0, row + i], by_h[i])
                multiply(by_t[i], n[-1, row + i], by_t[i])
            add(by_h[i], ds[i])
            add(by_t[i], ds[i])


@compile
def highway_backward(h: Array, t: Array, s: Array, ds: Array, dh: Array, dt: Array) -> None:
    """Backpropagate through one depth of one row: fill dh and dt, and multiply ds by the carry gate 1 - t."""
    for j in range(len(s)):
        dh[j] = ds[j] * t[j] * (one - h[j] * h[j])
    for j in range(len(s)):
        dt[j] = ds[j] * t[j] * (h[j] - s[j]) * (one - t[j])
    for j in range(len(s)):
        ds[j] -= ds[j] * t[j]


@compile
def block_gradients(
    gate: int, start: int, steps: int, row: int, x: Array, weights: Weights, kept: Kept, d_gate: Array, dx: Array,
    shares: Shares,
) -> None:  # fmt: skip
    """Fill dx for one gate and a block of steps, and add to the part's share of the weight gradients."""
    n, (D, _, b, S) = weights.n, d_gate.shape
    for d in range(D):
        sums, states = d_gate[d, :steps].reshape(-1, S), kept.entering[d, start : start + steps].reshape(-1, S)
        if len(n):
            masked = np.empty((steps, b, S), states.dtype)
            for k in range(steps):
                for i in range(b):
                    multiply(kept.entering[d, start + k, i], n[gate * (len(n) - 1), row + i], masked[k, i])
            states = masked.reshape(-1, S)
        add_product(states, sums, shares.R[d, gate])
        add_rows(sums, shares.b[d, gate, 0])
    sums = d_gate[0, :steps].reshape(-1, S)
    add_product(block_of(x[gate * (len(x) - 1)], row, start, steps, b), sums, shares.W[gate])
    d_block = np.dot(sums, weights.W[gate]).reshape(steps, b, -1)
    for k in range(steps):
        dx[gate, start + k, row : row + b] = d_block[k]


@compile
def multiply(a: Array, b: Array, product: Array) -> None:
    """Fill ``product`` with a * b. It may be the same array as a or b."""
    for j in range(len(a)):
        product[j] = a[j] * b[j]
