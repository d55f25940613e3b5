"""One layer of char-rnn's GRU over all time steps, with its derivative worked out by hand.

    r, z = sigmoid(a + R h + b)      n = tanh(a + R (r * h) + b)      h = z * n + (1 - z) * h

Only the chain itself is left in the time loop: the factors of the derivatives are worked out for a block of steps at
once, and the gradients of the weights are products after the loop.

    a  (T, B, 3H)  what the gates r, z, n take from the layer's input, biases included
    h  (B, H)      the state before the first step
    R  (3H, H)     recurrent weights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels.pointwise import asks_for_gradients, blocks, tanh_


def scan(a: Tensor, h: Tensor, R: Tensor) -> Tensor:
    """The states (T, B, H), one after each step. Differentiable once."""
    if asks_for_gradients(a, h, R):
        y: Tensor = _Scan.apply(a, h, R)  # type: ignore[no-untyped-call]
        return y
    return _forward(a, h, R, keep=False)[0]


def _forward(a: Tensor, h: Tensor, R: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states after each step (T, B, H), the gates r and z (K, B, 2H), n (K, B, H) and r * h (K, B, H).

    K is T where a backward pass needs all of them, and otherwise 1: each step writes over the one before.
    """
    T, B, H = len(a), *h.shape
    K = T if keep else 1
    y, gates = h.new_empty(T, B, H), h.new_empty(K, B, 2 * H)
    candidates, resets = h.new_empty(2, K, B, H)
    a_gates, a_n = (part.unbind() for part in a.split((2 * H, H), -1))
    r, z = (gate.unbind() for gate in gates.chunk(2, -1))
    R_gates, R_n = (part.t() for part in R.split((2 * H, H)))
    rz, n, reset = gates.unbind(), candidates.unbind(), resets.unbind()
    for t, y_t in enumerate(y.unbind()):
        k = t if keep else 0
        torch.addmm(a_gates[t], h, R_gates, out=rz[k]).sigmoid_()
        torch.mul(r[k], h, out=reset[k])
        tanh_(torch.addmm(a_n[t], reset[k], R_n, out=n[k]))
        h = torch.lerp(h, n[k], z[k], out=y_t)
    return y, gates, candidates, resets


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, h: Tensor, R: Tensor) -> Tensor:
        y, gates, candidates, resets = _forward(a, h, R, keep=True)
        ctx.save_for_backward(h, R, y, gates, candidates, resets)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, R, y, gates, candidates, resets = ctx.saved_tensors
        T, B, H = y.shape
        da = h.new_empty(T, B, 3 * H)
        by_r, by_zn = da[..., :H].unbind(), da[..., H:].unflatten(-1, (2, H)).unbind()
        da_gates, da_n, dys = da[..., : 2 * H].unbind(), da[..., 2 * H :].unbind(), dy.unbind()
        r, z = (gate.unbind() for gate in gates.chunk(2, -1))
        R_gates, R_n = R.split((2 * H, H))
        dh, through, d_reset = torch.zeros(3, B, H, dtype=h.dtype, device=h.device)
        for steps in blocks(T, B):
            s = slice(steps.start, steps.stop)
            _factors(gates[s], candidates[s], y[s], y[s.start - 1] if s.start else h, da[s])
            for t in reversed(steps):
                dh.add_(dys[t])
                by_zn[t].mul_(dh.unsqueeze(1))
                torch.mm(da_n[t], R_n, out=d_reset)
                by_r[t].mul_(d_reset)
                torch.addcmul(dh, dh, z[t], value=-1, out=through).addcmul_(d_reset, r[t])
                torch.addmm(through, da_gates[t], R_gates, out=dh)
        dR = torch.empty_like(R)
        torch.mm(da[0, :, : 2 * H].t(), h, out=dR[: 2 * H])
        if T > 1:
            dR[: 2 * H].addmm_(da[1:, :, : 2 * H].flatten(0, 1).t(), y[:-1].flatten(0, 1))
        torch.mm(da[..., 2 * H :].flatten(0, 1).t(), resets.flatten(0, 1), out=dR[2 * H :])
        return da, dh, dR


def _factors(gates: Tensor, n: Tensor, y: Tensor, before: Tensor, by: Tensor) -> None:
    """For some steps: by (K, B, 3H), the derivatives of r * h by the sum in r, and of the new h by those in z and n.

    before: the state before the first of these steps.
    """
    _, z = gates.chunk(2, -1)
    by_r, by_z, by_n = by.chunk(3, -1)
    torch.addcmul(gates, gates, gates, value=-1, out=by[..., : 2 * n.shape[-1]])
    torch.mul(z, n, out=by_n)
    torch.addcmul(z, by_n, n, value=-1, out=by_n)
    for steps, h in ((slice(0, 1), before), (slice(1, None), y[:-1])):
        by_r[steps].mul_(h)
        by_z[steps].mul_(n[steps] - h)
