"""One layer h = tanh(W x + b + R h) over all time steps: charrnn.kernels.rnn, compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from charrnn.kernels.cells import Array
from charrnn.kernels.compiled import parts
from charrnn.kernels.compiled.arithmetic import compile, one, tanh
from charrnn.kernels.compiled.inputs import enter, leave
from charrnn.kernels.compiled.parts import array, empty, largest, size, transposed, zeros
from charrnn.kernels.compiled.products import add_product, add_states, panels, through, transposed_panels


class Weights(NamedTuple):
    """The weights in the layout that the products read, transposed for the forward pass."""

    W: Array  # input weights (I, H); for the backward pass as ``leave`` takes them
    R: Array  # recurrent weights in panels
    b: Array  # (H,)


class Kept(NamedTuple):
    """The values that the forward pass keeps for a part's b rows."""

    states: Array  # (T + 1, b, H), beginning with the state before the first step


class Shares(NamedTuple):
    """A part's share of the weight gradients."""

    W: Array
    R: Array
    b: Array


def scan(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Return the same as charrnn.kernels.rnn.scan. Differentiable once."""
    (T, B), H, I = x.shape[:2], h.shape[-1], W.shape[-1]
    layer = ((h, (B, H)), (W, (H, I)), (R, (H, H)), (b, (H,)))
    parts.check(x, I, *layer, *([(x, (T, B, I))] if x.is_floating_point() else []))
    return parts.scan(forward_pass, backward_pass, x, h, W, R, b)


def forward_pass(rows: list[slice], x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> tuple[Array, list[Kept]]:
    (T, B), H = x.shape[:2], len(R)
    y, kept = empty(h, T, B, H), [Kept(empty(h, T + 1, size(part), H)) for part in rows]
    weights = Weights(transposed(W), transposed_panels(R, largest(rows)), array(b))
    parts.for_each_part(forward, rows, T, (array(x), array(h), weights, y), kept)
    return y, kept


def backward_pass(
    rows: list[slice], kept: list[Kept], dy: Tensor, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor
) -> tuple[Tensor | None, ...]:
    of_input, dh = parts.InputWeights(x, W), empty(h, *h.shape)
    weights = Weights(of_input.W, panels(R, largest(rows)), array(b))
    shares = [Shares(zeros(W, *of_input.W.shape), zeros(R, *R.shape), zeros(b, len(b))) for _ in rows]
    parts.for_each_part(backward, rows, len(dy), (array(x), array(dy), weights, of_input.x, dh), kept, shares)
    dW, dR, db = parts.totals(shares)
    dx, dW = of_input.result(dW)
    return dx, torch.from_numpy(dh), dW, dR, db


@compile
def forward(row: int, K: int, x: Array, h: Array, weights: Weights, y: Array, kept: Kept) -> None:
    """Run a part's rows, from ``row``, through all time steps. Write the states to y (T, B, H), and fill ``kept``."""
    states = kept.states
    T, b = states.shape[0] - 1, states.shape[1]
    states[0] = h[row : row + b]
    for start in range(0, T, K):
        stop = min(T, start + K)
        enter(x, row, start, weights.W, states[start + 1 : stop + 1])
        for t in range(start, stop):
            add_states(states[t], weights.R, states[t + 1], 0)
            for i in range(b):
                cell(states[t + 1, i], weights.b, y[t, row + i])


@compile
def cell(h: Array, bias: Array, y: Array) -> None:
    """Compute one step of one row: turn the sums in h (H,) into the new state, in place, and copy it to y."""
    for j in range(len(h)):
        h[j] = tanh(h[j] + bias[j])
    for j in range(len(h)):
        y[j] = h[j]


@compile
def backward(
    row: int, K: int, x: Array, dy: Array, weights: Weights, dx: Array, dh: Array, kept: Kept, shares: Shares
) -> None:
    """Fill a part's rows in dh (B, H) and dx (T, B, I), and add to its share of the weight gradients."""
    states = kept.states
    T, b, H = states.shape[0] - 1, states.shape[1], states.shape[2]
    d_sums, d_state = np.empty((K, b, H), dh.dtype), np.zeros((b, H), dh.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        stop = min(T, start + K)
        for t in range(stop - 1, start - 1, -1):
            d = d_sums[t - start]
            for i in range(b):
                cell_backward(states[t + 1, i], d_state[i], dy[t, row + i], d[i])
            through(d, 0, weights.R, d_state)
        d_block = d_sums[: stop - start]
        leave(x, row, start, weights.W, d_block, dx, shares.W, shares.b)
        add_product(d_block.reshape(-1, H), states[start:stop].reshape(-1, H), shares.R)
    dh[row : row + b] = d_state


@compile
def cell_backward(h: Array, dh: Array, dy: Array, d_sum: Array) -> None:
    """Backpropagate through one step of one row: fill d_sum (H,), the gradient of the sums inside tanh."""
    for j in range(len(h)):
        d_sum[j] = (dh[j] + dy[j]) * (one - h[j] * h[j])
