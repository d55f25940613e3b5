"""One layer h = tanh(a + R h) over all time steps, with its derivative worked out by hand.

Only the chain itself is left in the time loop; the gradient of the weights is one product after it.

    a  (T, B, H)   what the units take from the layer's input, biases included
    h  (B, H)      the state before the first step
    R  (H, H)      recurrent weights
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
    return _forward(a, h, R)


def _forward(a: Tensor, h: Tensor, R: Tensor) -> Tensor:
    y = torch.empty_like(a)
    R_t = R.t()
    for a_t, y_t in zip(a.unbind(), y.unbind(), strict=True):
        h = tanh_(torch.addmm(a_t, h, R_t, out=y_t))
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, h: Tensor, R: Tensor) -> Tensor:
        y = _forward(a, h, R)
        ctx.save_for_backward(h, R, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, R, y = ctx.saved_tensors
        T, B, _ = y.shape
        da, dh = torch.empty_like(y), torch.zeros_like(h)
        das, dys = da.unbind(), dy.unbind()
        for steps in blocks(T, B):
            y_s = y[steps.start : steps.stop]
            torch.mul(y_s, y_s, out=da[steps.start : steps.stop]).neg_().add_(1)
            for t in reversed(steps):
                das[t].mul_(torch.addmm(dys[t], das[t + 1], R, out=dh) if t + 1 < T else dys[t])
        dR = da[0].t() @ h
        if T > 1:
            dR.addmm_(da[1:].flatten(0, 1).t(), y[:-1].flatten(0, 1))
        return da, da[0] @ R, dR
