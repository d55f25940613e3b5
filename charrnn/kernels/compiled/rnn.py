"""One layer h = tanh(W x + b + R h) over all time steps: charrnn.kernels.rnn, compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels.compiled.arithmetic import compile, one, tanh
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
from charrnn.kernels.compiled.products import add_product, add_states, panels, through, transposed_panels


@compile
def forward(
    row: int, K: int, x: Array, h: Array, W_t: Array, R_panels: Array, bias: Array, y: Array, states: Array
) -> None:
    """b rows, from ``row``, through all time steps: y (T, B, H), and states (T + 1, b, H), h first."""
    T, b = states.shape[0] - 1, states.shape[1]
    states[0] = h[row : row + b]
    for start in range(0, T, K):
        stop = min(T, start + K)
        enter(x, row, start, W_t, states[start + 1 : stop + 1])
        for t in range(start, stop):
            add_states(states[t], R_panels, states[t + 1], 0)
            for i in range(b):
                cell(states[t + 1, i], bias, y[t, row + i])


@compile
def cell(h: Array, bias: Array, y: Array) -> None:
    """One step of one row: h (H,), in place of the sum of its products, and the same to y."""
    for j in range(len(h)):
        h[j] = tanh(h[j] + bias[j])
    for j in range(len(h)):
        y[j] = h[j]


@compile
def backward(
    row: int, K: int, x: Array, W: Array, R_panels: Array, dy: Array, states: Array,
    dh: Array, dx: Array, dW: Array, db: Array, dR: Array,
) -> None:  # fmt: skip
    """Those rows' dh (B, H) and dx (T, B, I), and their share of dW, dR (H, H) and db (H,)."""
    T, b, H = states.shape[0] - 1, states.shape[1], states.shape[2]
    d_sums, d_state = np.empty((K, b, H), dh.dtype), np.zeros((b, H), dh.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        stop = min(T, start + K)
        for t in range(stop - 1, start - 1, -1):
            d = d_sums[t - start]
            for i in range(b):
                cell_backward(states[t + 1, i], d_state[i], dy[t, row + i], d[i])
            through(d, 0, R_panels, d_state)
        d_block = d_sums[: stop - start]
        leave(x, row, start, W, d_block, dx, dW, db)
        add_product(d_block.reshape(-1, H), states[start:stop].reshape(-1, H), dR)
    dh[row : row + b] = d_state


@compile
def cell_backward(h: Array, dh: Array, dy: Array, d_sum: Array) -> None:
    """Back through one step of one row: the gradient of the sum inside its tanh (H,)."""
    for j in range(len(h)):
        d_sum[j] = (dh[j] + dy[j]) * (one - h[j] * h[j])


def scan(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """What charrnn.kernels.rnn.scan gives for the same. Differentiable once."""
    (T, B), H, I = x.shape[:2], h.shape[-1], W.shape[-1]
    layer = ((h, (B, H)), (W, (H, I)), (R, (H, H)), (b, (H,)))
    check(x, I, *layer, *([(x, (T, B, I))] if x.is_floating_point() else []))
    y: Tensor = _Scan.apply(x, h, W, R, b)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
        T, B, H = *x.shape[:2], len(R)
        y, rows = empty(h, T, B, H), parts(B)
        states = [empty(h, T + 1, part.stop - part.start, H) for part in rows]
        given: tuple[Any, ...] = array(x), array(h), transposed(W), transposed_panels(R, largest(rows)), array(b), y
        in_parallel(
            partial(forward, part.start, block_steps(T, own.shape[1]), *given, own)
            for part, own in zip(rows, states, strict=True)
        )
        ctx.rows = rows
        ctx.save_for_backward(x, W, R, *map(torch.from_numpy, states))
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, *states = ctx.saved_tensors
        T, B, H = dy.shape
        of_input, dh = InputGradients(x, W, len(states)), empty(R, B, H)
        dR = [zeros(R, H, H) for _ in states]
        given: tuple[Any, ...] = array(x), of_input.given, panels(R, largest(ctx.rows)), array(dy)
        in_parallel(
            partial(
                backward, part.start, block_steps(T, part.stop - part.start), *given, array(own),
                dh, of_input.x, of_input.W[p], of_input.b[p], dR[p],
            )
            for p, (part, own) in enumerate(zip(ctx.rows, states, strict=True))
        )  # fmt: skip
        dx, dW, db = of_input.all()
        return dx, torch.from_numpy(dh), dW, total(dR), db
