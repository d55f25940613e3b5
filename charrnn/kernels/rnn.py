"""One layer h = tanh(W x + b + R h) over all time steps, with a hand-derived backward pass.

x  (T, B, I)   the layer's input, or token ids, int64 (T, B)
h  (B, H)      the state before the first step
W  (H, I)      input weights;  R  (H, H)  recurrent weights;  b  (H,)  biases
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels import backend
from charrnn.kernels.blocks import Input, InputGradients, blocks, needs_gradients, tanh_


def scan(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Return the states (T, B, H) after each step. Differentiable once. Ignores autocast."""
    if needs_gradients(x, h, W, R, b) and backend.compiled(h):
        from charrnn.kernels.compiled import rnn as compiled

        return compiled.scan(x, h, W, R, b)
    with torch.autocast(x.device.type, enabled=False):
        if needs_gradients(x, h, W, R, b):
            y: Tensor = _Scan.apply(x, h, W, R, b)  # type: ignore[no-untyped-call]
            return y
        return _forward(x, h, W, R, b)[1:]


def _forward(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Return the states (T + 1, B, H), beginning with h."""
    T, B = x.shape[:2]
    states, one, R_t, entrance = h.new_empty(T + 1, B, len(R)), h.new_ones(()), R.t(), Input(x, W, b)
    states[0] = h
    y = states[1:]
    for steps in blocks(T, B):
        entrance.enter(steps, y[steps])
        for sums in y[steps].unbind():
            h = tanh_(sums.addmm_(h, R_t), one)
    return states


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
        states = _forward(x, h, W, R, b)
        ctx.save_for_backward(x, W, R, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, states = ctx.saved_tensors
        before, y = states[:-1], states[1:]
        T, B, H = y.shape
        one, dh, dR, of_input = R.new_ones(()), R.new_zeros(B, H), torch.zeros_like(R), InputGradients(x, W)
        for steps in reversed(blocks(T, B)):
            d_sums = torch.addcmul(one, y[steps], y[steps], value=-1)
            for d_t, dy_t in zip(reversed(d_sums.unbind()), reversed(dy[steps].unbind()), strict=True):
                d_t.mul_(dh.add_(dy_t))
                torch.mm(d_t, R, out=dh)
            of_input.add(steps, d_sums)
            dR.addmm_(d_sums.flatten(0, 1).t(), before[steps].flatten(0, 1))
        dx, dW, db = of_input.all()
        return dx, dh, dW, dR, db
