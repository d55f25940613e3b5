"""One layer of char-rnn's GRU over all time steps, with a hand-derived backward pass.

r, z = sigmoid(W x + b + R h)    n = tanh(W x + b + R (r * h))    h = z * n + (1 - z) * h

x  (T, B, I)   the layer's input, or token ids, int64 (T, B)
h  (B, H)      the state before the first step
W  (3H, I)     input weights;  R  (3H, H)  recurrent weights;  b  (3H,)  biases; all with rows in the order r, z, n
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
        from charrnn.kernels.compiled import gru as compiled

        return compiled.scan(x, h, W, R, b)
    with torch.autocast(x.device.type, enabled=False):
        if needs_gradients(x, h, W, R, b):
            y: Tensor = _Scan.apply(x, h, W, R, b)  # type: ignore[no-untyped-call]
            return y
        return _forward(x, h, W, R, b, keep=False)[0][1:]


def _forward(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states (T + 1, B, H), beginning with h, the gates (K, B, 3H) and r * h (K, B, H).

    With ``keep``, K is T. Otherwise K is the length of a block, and each block overwrites the one before.
    """
    T, B, H = *x.shape[:2], R.shape[1]
    in_blocks = blocks(T, B)
    K = T if keep else in_blocks[0].stop
    states, gates, resets = h.new_empty(T + 1, B, H), h.new_empty(K, B, 3 * H), h.new_empty(K, B, H)
    states[0] = h
    y = states[1:]
    one, entrance = h.new_ones(()), Input(x, W, b)
    R_rz, R_n = (part.t() for part in R.split((2 * H, H)))
    for steps in in_blocks:
        kept = steps if keep else slice(0, steps.stop - steps.start)
        entrance.enter(steps, gates[kept])
        rz, n = (part.unbind() for part in gates[kept].split((2 * H, H), -1))
        r, z, _ = (gate.unbind() for gate in gates[kept].chunk(3, -1))
        for rz_t, r_t, z_t, n_t, reset_t, y_t in zip(rz, r, z, n, resets[kept], y[steps], strict=True):
            rz_t.addmm_(h, R_rz).sigmoid_()
            tanh_(n_t.addmm_(torch.mul(r_t, h, out=reset_t), R_n), one)
            h = torch.lerp(h, n_t, z_t, out=y_t)
    return states, gates, resets


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
        states, *kept = _forward(x, h, W, R, b, keep=True)
        ctx.save_for_backward(x, W, R, states, *kept)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, states, gates, resets = ctx.saved_tensors
        T, B, H = resets.shape
        in_blocks = blocks(T, B)
        d_sums = gates.new_empty(in_blocks[0].stop, B, 3 * H)
        dh, d_before, d_reset = gates.new_zeros(3, B, H)
        (R_rz, R_n), dR, of_input = R.split((2 * H, H)), torch.zeros_like(R), InputGradients(x, W)
        for steps in reversed(in_blocks):
            K = steps.stop - steps.start
            before = states[steps]  # the state before each step
            _factors(gates[steps], before, d_sums[:K])
            d_rz, d_n = (d.unbind() for d in d_sums[:K].split((2 * H, H), -1))
            d_r, d_zn = d_sums[:K, :, :H].unbind(), d_sums[:K, :, H:].unflatten(-1, (2, H)).unbind()
            r, z, _ = (gate.unbind() for gate in gates[steps].chunk(3, -1))
            loop = zip(d_rz, d_r, d_zn, d_n, r, z, dy[steps], strict=True)
            for d_rz_t, d_r_t, d_zn_t, d_n_t, r_t, z_t, dy_t in reversed(list(loop)):
                dh.add_(dy_t)
                d_zn_t.mul_(dh.unsqueeze(1))
                torch.mm(d_n_t, R_n, out=d_reset)
                d_r_t.mul_(d_reset)
                torch.addcmul(dh, dh, z_t, value=-1, out=d_before).addcmul_(d_reset, r_t)
                dh, d_before = d_before.addmm_(d_rz_t, R_rz), dh
            of_input.add(steps, d_sums[:K])
            d_rz, d_n = d_sums[:K].flatten(0, 1).split((2 * H, H), -1)
            dR[: 2 * H].addmm_(d_rz.t(), before.flatten(0, 1))
            dR[2 * H :].addmm_(d_n.t(), resets[steps].flatten(0, 1))
        dx, dW, db = of_input.all()
        return dx, dh, dW, dR, db


def _factors(gates: Tensor, before: Tensor, by_sums: Tensor) -> None:
    """Fill by_sums (K, B, 3H) with derivatives with respect to the sums inside the gates.

    For r they are derivatives of r * h, and for z and n derivatives of the new h.
    """
    H = before.shape[-1]
    _, z, n = gates.chunk(3, -1)
    by_r, by_z, by_n = by_sums.chunk(3, -1)
    rz, by_rz = gates[..., : 2 * H], by_sums[..., : 2 * H]
    torch.addcmul(rz, rz, rz, value=-1, out=by_rz)
    by_r.mul_(before)
    torch.sub(n, before, out=by_n)
    by_z.mul_(by_n)
    torch.mul(z, n, out=by_n)
    torch.addcmul(z, by_n, n, value=-1, out=by_n)
