"""One layer of char-rnn's GRU over all time steps: charrnn.kernels.gru, compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from charrnn.kernels.cells import Array
from charrnn.kernels.compiled import parts
from charrnn.kernels.compiled.arithmetic import compile, one, sigmoid, tanh
from charrnn.kernels.compiled.inputs import enter, leave
from charrnn.kernels.compiled.parts import array, empty, largest, size, transposed, zeros
from charrnn.kernels.compiled.products import add_product, add_states, columns, panels, through, transposed_panels


class Weights(NamedTuple):
    """The weights in the layout that the products read, transposed for the forward pass."""

    W: Array  # input weights (I, 3H); for the backward pass as ``leave`` takes them
    rz: Array  # recurrent weights of r and z in panels
    n: Array  # recurrent weights of n in panels
    b: Array  # (3H,)


class Kept(NamedTuple):
    """The values that the forward pass keeps for a part's b rows."""

    states: Array  # (T + 1, b, H), beginning with the state before the first step
    gates: Array  # r, z, n (T, b, 3H)
    resets: Array  # r * h (T, b, H)


class Shares(NamedTuple):
    """A part's share of the weight gradients."""

    W: Array
    rz: Array
    n: Array
    b: Array


def scan(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Return the same as charrnn.kernels.gru.scan. Differentiable once."""
    (T, B), H, I = x.shape[:2], h.shape[-1], W.shape[-1]
    layer = ((h, (B, H)), (W, (3 * H, I)), (R, (3 * H, H)), (b, (3 * H,)))
    parts.check(x, I, *layer, *([(x, (T, B, I))] if x.is_floating_point() else []))
    return parts.scan(forward_pass, backward_pass, x, h, W, R, b)


def forward_pass(rows: list[slice], x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> tuple[Array, list[Kept]]:
    (T, B), H = x.shape[:2], R.shape[1]
    y, sizes = empty(h, T, B, H), map(size, rows)
    kept = [Kept(empty(h, T + 1, n, H), empty(h, T, n, 3 * H), empty(h, T, n, H)) for n in sizes]
    R_rz, R_n = (transposed_panels(part, largest(rows)) for part in R.split((2 * H, H)))
    weights = Weights(transposed(W), R_rz, R_n, array(b))
    parts.for_each_part(forward, rows, T, (array(x), array(h), weights, y), kept)
    return y, kept


def backward_pass(
    rows: list[slice], kept: list[Kept], dy: Tensor, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor
) -> tuple[Tensor | None, ...]:
    H = R.shape[1]
    of_input, dh = parts.InputWeights(x, W), empty(h, *h.shape)
    R_rz, R_n = (panels(part, largest(rows)) for part in R.split((2 * H, H)))
    weights = Weights(of_input.W, R_rz, R_n, array(b))
    shapes = of_input.W.shape, (2 * H, H), (H, H), (3 * H,)
    shares = [Shares(*(zeros(W, *shape) for shape in shapes)) for _ in rows]
    parts.for_each_part(backward, rows, len(dy), (array(x), array(dy), weights, of_input.x, dh), kept, shares)
    dW, dR_rz, dR_n, db = parts.totals(shares)
    dx, dW = of_input.result(dW)
    return dx, torch.from_numpy(dh), dW, torch.cat([dR_rz, dR_n]), db


@compile
def forward(row: int, K: int, x: Array, h: Array, weights: Weights, y: Array, kept: Kept) -> None:
    """Run a part's rows, from ``row``, through all time steps. Write the states to y (T, B, H), and fill ``kept``."""
    states, gates, resets = kept
    T, b, H = resets.shape
    states[0] = h[row : row + b]
    for start in range(0, T, K):
        stop = min(T, start + K)
        enter(x, row, start, weights.W, gates[start:stop])
        for t in range(start, stop):
            add_states(states[t], weights.rz, gates[t], 0)
            for i in range(b):
                reset(gates[t, i], weights.b, states[t, i], resets[t, i])
            add_states(resets[t], weights.n, gates[t], 2 * H)
            for i in range(b):
                update(gates[t, i], weights.b, states[t, i], states[t + 1, i], y[t, row + i])


@compile
def reset(gates: Array, bias: Array, h: Array, product: Array) -> None:
    """Compute the first half of a row's step: turn the sums of r and z into gates, in place, and fill r * h (H,)."""
    H = len(h)
    for j in range(2 * H):
        gates[j] = sigmoid(gates[j] + bias[j])
    for j in range(H):
        product[j] = gates[j] * h[j]


@compile
def update(gates: Array, bias: Array, h: Array, new: Array, y: Array) -> None:
    """Compute the second half of a row's step: turn the sums of n into n, in place, and write h to new and y."""
    H = len(h)
    z, n, b = gates[H : 2 * H], gates[2 * H :], bias[2 * H :]
    for j in range(H):
        n[j] = tanh(n[j] + b[j])
    for j in range(H):
        new[j] = h[j] + z[j] * (n[j] - h[j])
    for j in range(H):
        y[j] = new[j]


@compile
def backward(
    row: int, K: int, x: Array, dy: Array, weights: Weights, dx: Array, dh: Array, kept: Kept, shares: Shares
) -> None:
    """Fill a part's rows in dh (B, H) and dx (T, B, I), and add to its share of the weight gradients."""
    T, b, H = kept.resets.shape
    d_gates = np.empty((K, b, 3 * H), dh.dtype)  # gradients of the sums inside r, z and n
    # the state's gradient in two parts: through the products of r and z, and all the rest
    direct, by_rz = np.zeros((b, H), dh.dtype), np.zeros((b, H), dh.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        stop = min(T, start + K)
        for t in range(stop - 1, start - 1, -1):
            step_backward(t, row, dy, weights, kept, direct, by_rz, d_gates[t - start])
        d_block = d_gates[: stop - start]
        leave(x, row, start, weights.W, d_block, dx, shares.W, shares.b)
        d_rows = d_block.reshape(-1, 3 * H)
        add_product(columns(d_rows, 0, 2 * H), kept.states[start:stop].reshape(-1, H), shares.rz)
        add_product(columns(d_rows, 2 * H, H), kept.resets[start:stop].reshape(-1, H), shares.n)
    for i in range(b):
        for j in range(H):
            dh[row + i, j] = direct[i, j] + by_rz[i, j]


@compile
def step_backward(
    t: int, row: int, dy: Array, weights: Weights, kept: Kept, direct: Array, by_rz: Array, d_gates: Array
) -> None:
    """Backpropagate through step t: fill d_gates (b, 3H), and replace the state's gradients by those of step t - 1."""
    gates, states, H = kept.gates[t], kept.states[t], kept.resets.shape[2]
    d_reset = np.empty(direct.shape, direct.dtype)
    for i in range(len(gates)):
        update_backward(gates[i], states[i], direct[i], by_rz[i], dy[t, row + i], d_gates[i])
    through(d_gates, 2 * H, weights.n, d_reset)
    for i in range(len(gates)):
        reset_backward(gates[i], states[i], d_reset[i], direct[i], d_gates[i])
    through(d_gates, 0, weights.rz, by_rz)


@compile
def update_backward(gates: Array, h: Array, dh: Array, by_rz: Array, dy: Array, d_gates: Array) -> None:
    """Backpropagate through the second half of a row's step: fill the gradients of the sums inside z and n.

    dh + by_rz + dy (H,) is the gradient of the new h. On return, dh is the part of it that reaches the old h directly.
    """
    H = len(h)
    z, n, dz, dn = gates[H : 2 * H], gates[2 * H :], d_gates[H : 2 * H], d_gates[2 * H :]
    for j in range(H):
        dh[j] += by_rz[j] + dy[j]
    for j in range(H):
        dz[j] = dh[j] * (n[j] - h[j]) * z[j] * (one - z[j])
    for j in range(H):
        dn[j] = dh[j] * z[j] * (one - n[j] * n[j])
        dh[j] *= one - z[j]


@compile
def reset_backward(gates: Array, h: Array, d_reset: Array, dh: Array, d_gates: Array) -> None:
    """Backpropagate through the first half: fill the gradient of r's sums, and add to dh (H,) what comes by r * h."""
    for j in range(len(h)):
        d_gates[j] = d_reset[j] * h[j] * gates[j] * (one - gates[j])
    for j in range(len(h)):
        dh[j] += d_reset[j] * gates[j]
