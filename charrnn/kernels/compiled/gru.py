"""One layer of char-rnn's GRU over all time steps: charrnn.kernels.gru, compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels.compiled.arithmetic import compile, one, sigmoid, tanh
from charrnn.kernels.compiled.inputs import enter, leave
from charrnn.kernels.compiled.parts import (
    Array,
    InputGradients,
    array,
    block_steps,
    check,
    empty,
    in_parallel,
    largest,
    parts,
    total,
    transposed,
    zeros,
)
from charrnn.kernels.compiled.products import add_product, add_states, columns, panels, through, transposed_panels


@compile
def forward(
    row: int, K: int, x: Array, h: Array, W_t: Array, rz_panels: Array, n_panels: Array, bias: Array, y: Array,
    states: Array, gates: Array, resets: Array,
) -> None:  # fmt: skip
    """b rows, from ``row``, through all time steps: y (T, B, H), states (T + 1, b, H), h first, and of each step the
    gates r, z and n (T, b, 3H) and r * h (T, b, H)."""
    T, b, H = resets.shape
    states[0] = h[row : row + b]
    for start in range(0, T, K):
        stop = min(T, start + K)
        enter(x, row, start, W_t, gates[start:stop])
        for t in range(start, stop):
            add_states(states[t], rz_panels, gates[t], 0)
            for i in range(b):
                reset(gates[t, i], bias, states[t, i], resets[t, i])
            add_states(resets[t], n_panels, gates[t], 2 * H)
            for i in range(b):
                update(gates[t, i], bias, states[t, i], states[t + 1, i], y[t, row + i])


@compile
def reset(gates: Array, bias: Array, h: Array, product: Array) -> None:
    """The first half of a row's step: the gates r and z, in place of the sums of their products, and r * h (H,)."""
    H = len(h)
    for j in range(2 * H):
        gates[j] = sigmoid(gates[j] + bias[j])
    for j in range(H):
        product[j] = gates[j] * h[j]


@compile
def update(gates: Array, bias: Array, h: Array, new: Array, y: Array) -> None:
    """The second half: n, likewise in place, and the new h (H,), also to y."""
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
    row: int, K: int, x: Array, W: Array, rz_panels: Array, n_panels: Array, dy: Array, states: Array, gates: Array,
    resets: Array, dh: Array, dx: Array, dW: Array, db: Array, dR_rz: Array, dR_n: Array,
) -> None:  # fmt: skip
    """Those rows' dh (B, H) and dx (T, B, I), and their share of dW, dR_rz (2H, H), dR_n (H, H) and db (3H,)."""
    T, b, H = resets.shape
    d_gates = np.empty((K, b, 3 * H), dh.dtype)  # of the sums inside r, z and n
    d_after, d_reset, by_rz = np.zeros((b, H), dh.dtype), np.empty((b, H), dh.dtype), np.zeros((b, H), dh.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        stop = min(T, start + K)
        for t in range(stop - 1, start - 1, -1):
            k = t - start
            for i in range(b):
                update_backward(gates[t, i], states[t, i], d_after[i], by_rz[i], dy[t, row + i], d_gates[k, i])
            through(d_gates[k], 2 * H, n_panels, d_reset)
            for i in range(b):
                reset_backward(gates[t, i], states[t, i], d_reset[i], d_after[i], d_gates[k, i])
            through(d_gates[k], 0, rz_panels, by_rz)
        d_block = d_gates[: stop - start]
        leave(x, row, start, W, d_block, dx, dW, db)
        d_rows = d_block.reshape(-1, 3 * H)
        add_product(columns(d_rows, 0, 2 * H), states[start:stop].reshape(-1, H), dR_rz)
        add_product(columns(d_rows, 2 * H, H), resets[start:stop].reshape(-1, H), dR_n)
    for i in range(b):
        for j in range(H):
            dh[row + i, j] = d_after[i, j] + by_rz[i, j]


@compile
def update_backward(gates: Array, h: Array, dh: Array, by_rz: Array, dy: Array, d_gates: Array) -> None:
    """Back through the second half of a row's step: the gradients of the sums inside z and n. dh (H,) is that of
    the new h, by_rz and dy still to be added, and becomes what of it passes to the old h directly."""
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
    """Back through the first half: the gradient of the sum inside r, and what comes to dh (H,) by way of r * h."""
    for j in range(len(h)):
        d_gates[j] = d_reset[j] * h[j] * gates[j] * (one - gates[j])
    for j in range(len(h)):
        dh[j] += d_reset[j] * gates[j]


def scan(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """What charrnn.kernels.gru.scan gives for the same. Differentiable once."""
    (T, B), H, I = x.shape[:2], h.shape[-1], W.shape[-1]
    layer = ((h, (B, H)), (W, (3 * H, I)), (R, (3 * H, H)), (b, (3 * H,)))
    check(x, I, *layer, *([(x, (T, B, I))] if x.is_floating_point() else []))
    y: Tensor = _Scan.apply(x, h, W, R, b)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
        (T, B), H = x.shape[:2], R.shape[1]
        y, rows = empty(h, T, B, H), parts(B)
        sizes = [part.stop - part.start for part in rows]
        kept = [(empty(h, T + 1, n, H), empty(h, T, n, 3 * H), empty(h, T, n, H)) for n in sizes]
        recurrent = (transposed_panels(part, largest(rows)) for part in R.split((2 * H, H)))
        given: tuple[Any, ...] = array(x), array(h), transposed(W), *recurrent, array(b), y
        in_parallel(
            partial(forward, part.start, block_steps(T, n), *given, *own)
            for part, n, own in zip(rows, sizes, kept, strict=True)
        )
        ctx.rows = rows
        ctx.save_for_backward(x, W, R, *(torch.from_numpy(a) for own in kept for a in own))
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, *kept = ctx.saved_tensors
        T, B, H = dy.shape
        states, gates, resets = kept[0::3], kept[1::3], kept[2::3]
        of_input, dh = InputGradients(x, W, len(states)), empty(R, B, H)
        dR = [(zeros(R, 2 * H, H), zeros(R, H, H)) for _ in states]
        recurrent = (panels(part, largest(ctx.rows)) for part in R.split((2 * H, H)))
        given: tuple[Any, ...] = array(x), of_input.given, *recurrent, array(dy)
        in_parallel(
            partial(
                backward, part.start, block_steps(T, part.stop - part.start), *given, *map(array, own),
                dh, of_input.x, of_input.W[p], of_input.b[p], *dR[p],
            )
            for p, (part, *own) in enumerate(zip(ctx.rows, states, gates, resets, strict=True))
        )  # fmt: skip
        dx, dW, db = of_input.all()
        return dx, torch.from_numpy(dh), dW, torch.cat([total(shares) for shares in zip(*dR, strict=True)]), db
