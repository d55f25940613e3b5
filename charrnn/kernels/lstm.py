"""One LSTM layer over all time steps, with its derivative worked out by hand.

    i, f, o = sigmoid(a + R h)      g = tanh(a + R h)      c = f * c + i * g      h = o * tanh(c)

Only the chain itself is left in the time loop: the factors of the derivatives are worked out for a block of steps at
once, and the gradient of the weights is one product after the loop.

    a  (T, B, 4H)  what the gates i, f, g, o take from the layer's input, biases included
    h  (B, H)      the state before the first step, and the cell c (B, H)
    R  (4H, H)     recurrent weights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels.pointwise import asks_for_gradients, blocks, tanh_


def scan(a: Tensor, h: Tensor, c: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """The states (T, B, H), one after each step, and the cell (B, H) after the last. Differentiable once."""
    if asks_for_gradients(a, h, c, R):
        y, last = _Scan.apply(a, h, c, R)  # type: ignore[no-untyped-call]
        return y, last
    y, _, cells, _ = _forward(a, h, c, R, keep=False)
    return y, cells[0]


def _forward(a: Tensor, h: Tensor, c: Tensor, R: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """After each step the states (T, B, H), the gates (K, B, 4H), the cells (K, B, H) and their tanh (K, B, H).

    K is T where a backward pass needs all of them, and otherwise 1: each step writes over the one before.
    """
    T, B, H = len(a), *h.shape
    K = T if keep else 1
    y, gates = h.new_empty(T, B, H), h.new_empty(K, B, 4 * H)
    cells, tanhs = h.new_empty(2, K, B, H)
    i, f, g, o = (gate.unbind() for gate in gates.chunk(4, -1))
    all_gates, all_cells, all_tanhs, R_t = gates.unbind(), cells.unbind(), tanhs.unbind(), R.t()
    for t, (a_t, y_t) in enumerate(zip(a.unbind(), y.unbind(), strict=True)):
        k = t if keep else 0
        torch.addmm(a_t, h, R_t, out=all_gates[k])
        # tanh through the one sigmoid for all gates: tanh a = 2 sigmoid(2a) - 1
        g[k].mul_(2)
        all_gates[k].sigmoid_()
        g[k].mul_(2).sub_(1)
        c = torch.mul(c, f[k], out=all_cells[k]).addcmul_(i[k], g[k])
        h = torch.mul(o[k], tanh_(all_tanhs[k].copy_(c)), out=y_t)
    return y, gates, cells, tanhs


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, h: Tensor, c: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        y, gates, cells, tanhs = _forward(a, h, c, R, keep=True)
        ctx.save_for_backward(h, c, R, y, gates, cells, tanhs)
        return y, cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, c, R, y, gates, cells, tanhs = ctx.saved_tensors
        T, B, H = y.shape
        da, by_h = torch.empty_like(gates), torch.empty_like(y)  # by_h: what c receives through h
        dc, dh = dc.clone(), torch.empty_like(h)
        f = gates.chunk(4, -1)[1].unbind()
        das, dys, bys = da.unbind(), dy.unbind(), by_h.unbind()
        through_c, through_h = da[..., : 3 * H].unflatten(-1, (3, H)).unbind(), da[..., 3 * H :].unbind()
        for steps in blocks(T, B):
            s = slice(steps.start, steps.stop)
            _factors(gates[s], cells[s], tanhs[s], y[s], cells[s.start - 1] if s.start else c, da[s], by_h[s])
            for t in reversed(steps):
                dh_t = torch.addmm(dys[t], das[t + 1], R, out=dh) if t + 1 < T else dys[t]
                dc.addcmul_(dh_t, bys[t])
                through_c[t].mul_(dc.unsqueeze(1))
                through_h[t].mul_(dh_t)
                dc.mul_(f[t])
        dR = da[0].t() @ h
        if T > 1:
            dR.addmm_(da[1:].flatten(0, 1).t(), y[:-1].flatten(0, 1))
        return da, da[0] @ R, dc, dR


def _factors(
    gates: Tensor, cells: Tensor, tanhs: Tensor, y: Tensor, before: Tensor, by: Tensor, by_h: Tensor
) -> None:
    """For some steps: by (K, B, 4H), the derivatives of c by the sums in i, f, g and of h by that in o; by_h, of h by c.

    before: the cells before the first of these steps.
    """
    i, f, g, o = gates.chunk(4, -1)
    by_i, by_f, by_g, by_o = by.chunk(4, -1)
    torch.addcmul(gates, gates, gates, value=-1, out=by)
    by_i.mul_(g)
    by_f[0].mul_(before)
    by_f[1:].mul_(cells[:-1])
    torch.mul(i, g, out=by_g)
    torch.addcmul(i, by_g, g, value=-1, out=by_g)
    by_o.mul_(tanhs)
    torch.addcmul(o, y, tanhs, value=-1, out=by_h)
