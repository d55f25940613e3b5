"""One recurrent highway layer over all time steps: charrnn.kernels.highway, compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels.compiled.arithmetic import compile, one, sigmoid, tanh
from charrnn.kernels.compiled.inputs import add_rows, block_of
from charrnn.kernels.compiled.parts import (
    Array,
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
from charrnn.kernels.compiled.products import add, add_product, add_states, panels, through, transposed_panels


@compile
def forward(
    row: int, K: int, x: Array, s: Array, W: Array, R_panels: Array, bias: Array, n: Array, y: Array,
    entering: Array, h: Array, t: Array,
) -> None:  # fmt: skip
    """b rows, from ``row``, through all time steps: y (T, B, S), and for each depth and step the state that enters and
    the gates h and t, (D, T, b, S) each. n (M, B, S), or M = 0 for no masks."""
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
                        add_states(masked, R_panels[d, gate], sums, 0)
                    else:
                        add_states(state, R_panels[d, gate], sums, 0)
                for i in range(b):
                    highway(bias[d, 0, 0], bias[d, 1, 0], state[i], h[d, step, i], t[d, step, i])
            y[step, row : row + b] = state


@compile
def highway(h_bias: Array, t_bias: Array, s: Array, h: Array, t: Array) -> None:
    """One depth of one row: its gates h and t (S,), in place of the sums of their products, and its state s anew."""
    for j in range(len(s)):
        h[j] = tanh(h[j] + h_bias[j])
    for j in range(len(s)):
        t[j] = sigmoid(t[j] + t_bias[j])
    for j in range(len(s)):
        s[j] += t[j] * (h[j] - s[j])


@compile
def highway_backward(h: Array, t: Array, s: Array, ds: Array, dh: Array, dt: Array) -> None:
    """Back through one depth of one row: the gradients of the sums inside h and t; ds keeps what 1 - t lets pass."""
    for j in range(len(s)):
        dh[j] = ds[j] * t[j] * (one - h[j] * h[j])
    for j in range(len(s)):
        dt[j] = ds[j] * t[j] * (h[j] - s[j]) * (one - t[j])
    for j in range(len(s)):
        ds[j] -= ds[j] * t[j]


@compile
def multiply(a: Array, b: Array, product: Array) -> None:
    for j in range(len(a)):
        product[j] = a[j] * b[j]


@compile
def backward(
    row: int, K: int, x: Array, W_t: Array, R_panels: Array, n: Array, dy: Array, entering: Array, h: Array, t: Array,
    ds: Array, dx: Array, dW: Array, dR: Array, db: Array,
) -> None:  # fmt: skip
    """Those rows' ds (B, S) and dx (2, T, B, I), and their share of dW, dR and db, shaped as W, R and b."""
    D, T, b, S = h.shape
    dh, dt = np.empty((D, K, b, S), ds.dtype), np.empty((D, K, b, S), ds.dtype)
    by_h, by_t = np.empty((b, S), ds.dtype), np.empty((b, S), ds.dtype)
    d_state, masked = np.zeros((b, S), ds.dtype), np.empty((K, b, S), ds.dtype)
    for start in range((T - 1) // K * K, -1, -K):
        stop = min(T, start + K)
        steps = stop - start
        for step in range(stop - 1, start - 1, -1):
            k = step - start
            for i in range(b):
                add(dy[step, row + i], d_state[i])
            for d in range(D - 1, -1, -1):
                for i in range(b):
                    highway_backward(
                        h[d, step, i], t[d, step, i], entering[d, step, i], d_state[i], dh[d, k, i], dt[d, k, i]
                    )
                through(dh[d, k], 0, R_panels[d, 0], by_h)
                through(dt[d, k], 0, R_panels[d, 1], by_t)
                for i in range(b):
                    if len(n):
                        multiply(by_h[i], n[0, row + i], by_h[i])
                        multiply(by_t[i], n[-1, row + i], by_t[i])
                    add(by_h[i], d_state[i])
                    add(by_t[i], d_state[i])
        for gate in range(2):
            d_gate = dh if gate == 0 else dt
            for d in range(D):
                sums, states = d_gate[d, :steps].reshape(-1, S), entering[d, start:stop].reshape(-1, S)
                if len(n):
                    for k in range(steps):
                        for i in range(b):
                            multiply(entering[d, start + k, i], n[gate * (len(n) - 1), row + i], masked[k, i])
                    states = masked[:steps].reshape(-1, S)
                add_product(states, sums, dR[d, gate])
                add_rows(sums, db[d, gate, 0])
            sums = d_gate[0, :steps].reshape(-1, S)
            add_product(block_of(x[gate * (len(x) - 1)], row, start, steps, b), sums, dW[gate])
            d_block = np.dot(sums, W_t[gate]).reshape(steps, b, -1)
            for k in range(steps):
                dx[gate, start + k, row : row + b] = d_block[k]
    ds[row : row + b] = d_state


def acting_from_the_right(R: Tensor, rows: int, cut: Callable[[Tensor, int], Array]) -> Array:
    """The weights R (D, 2, S, S), whose products are s R and not s R', in panels: (D, 2, P, ...)."""
    return np.stack([[cut(gate.mT, rows) for gate in depth] for depth in R])


def scan(x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None) -> Tensor:
    """What charrnn.kernels.highway.scan gives for the same. Differentiable once."""
    (M, T, B, I), S, D = x.shape, s.shape[-1], len(R)
    layer = ((s, (B, S)), (W, (2, I, S)), (R, (D, 2, S, S)), (b, (D, 2, 1, S)))
    check(x, I, *layer, (x, (M, T, B, I)), *([] if n is None else [(n, (len(n), B, S))]))
    for masked in (M, M if n is None else len(n)):
        if masked not in (1, 2):
            raise ValueError(f"masks for {masked} gates, where there are 2 that may share one")
    y: Tensor = _Scan.apply(x, s, W, R, b, n)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None) -> Tensor:
        (T, B), (D, _, S, _) = x.shape[1:3], R.shape
        y, rows = empty(s, T, B, S), parts(B)
        sizes = [part.stop - part.start for part in rows]
        kept = [tuple(empty(s, D, T, size, S) for _ in range(3)) for size in sizes]
        n = s.new_empty(0, B, S) if n is None else n
        recurrent = acting_from_the_right(R, largest(rows), transposed_panels)
        given: tuple[Any, ...] = array(x), array(s), array(W), recurrent, array(b), array(n), y
        in_parallel(
            partial(forward, part.start, block_steps(T, size), *given, *own)
            for part, size, own in zip(rows, sizes, kept, strict=True)
        )
        ctx.rows = rows
        ctx.save_for_backward(x, W, R, n, *(torch.from_numpy(a) for own in kept for a in own))
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, n, *kept = ctx.saved_tensors
        (M, T, B, I), S = x.shape, R.shape[-1]
        ds, dx = empty(R, B, S), empty(R, 2, T, B, I)
        given: tuple[Any, ...] = (
            array(x),
            transposed(W),
            acting_from_the_right(R, largest(ctx.rows), panels),
            array(n),
            array(dy),
        )
        shares = [(zeros(W, *W.shape), zeros(R, *R.shape), zeros(R, len(R), 2, 1, S)) for _ in ctx.rows]
        in_parallel(
            partial(
                backward, part.start, block_steps(T, part.stop - part.start), *given, *map(array, own),
                ds, dx, *share,
            )
            for part, share, *own in zip(ctx.rows, shares, kept[0::3], kept[1::3], kept[2::3], strict=True)
        )  # fmt: skip
        d_input = torch.from_numpy(dx)
        dW, dR, db = map(total, zip(*shares, strict=True))
        return d_input if M == 2 else d_input.sum(0, keepdim=True), torch.from_numpy(ds), dW, dR, db, None
