"""One recurrent highway layer over all time steps, with a hand-derived backward pass.

The layer is a chain of T * D small steps, each with a product and a few pointwise operations, and autograd would keep a
graph of them all. Here, everything that does not depend on the chain is moved out of it. The input products become one
product before the chain, and the weight gradients one product per depth for each block of steps. The operations that
remain in the chain write into buffers that are allocated once.

Shapes: T time steps, B rows, I inputs, S units, D depths. On an axis of size 2, the first entry belongs to the
candidate h and the second to the transform gate t. M is 1 if h and t share their dropout masks and 2 if each has its
own; an axis of size M is expanded to 2.

    x  (M, T, B, I)     the layer's input, already masked
    s  (B, S)           the state before the first step
    W  (2, I, S)        input weights, used at the first depth
    R  (D, 2, S, S)     recurrent weights
    b  (D, 2, 1, S)     biases
    n  (M, B, S)        masks on the state where it enters the products, or None for no masks
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from charrnn.kernels import backend
from charrnn.kernels.blocks import block_steps, needs_gradients, tanh_


def scan(x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None = None) -> Tensor:
    """Return the layer's states (T, B, S) after each time step.

    Differentiable once, but not with respect to the masks. Keeps only the states if no gradient is needed. Ignores
    autocast.
    """
    if needs_gradients(x, s, W, R, b) and backend.compiled(s):
        from charrnn.kernels.compiled import highway as compiled

        return compiled.scan(x, s, W, R, b, n)
    with torch.autocast(x.device.type, enabled=False):
        if needs_gradients(x, s, W, R, b):
            y: Tensor = _Scan.apply(x, s, W, R, b, n)  # type: ignore[no-untyped-call]
            return y
        return _forward(x, s, W, R, b, n, keep=False)[0]


def _forward(
    x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states after each step, the gates (D, 2, K, B, S) and the states entering each depth (D, K, B, S).

    With ``keep``, K is T, for the backward pass. Otherwise K is 1, and each step overwrites the one before.
    """
    _, T, B, I = x.shape
    D, S, K = len(R), s.shape[-1], T if keep else 1
    y = s.new_empty(T, B, S)
    gates, entering = s.new_empty(D, 2, K, B, S), s.new_empty(D, K, B, S)
    masked = None if n is None else torch.empty_like(n)

    inputs = torch.baddbmm(b[0], x.expand(2, T, B, I).flatten(1, 2), W).view(2, T, B, S).unbind(1)
    sums, h, t = [a.unbind(1) for a in gates], _by_step(gates[:, 0]), _by_step(gates[:, 1])
    outputs, states = y.unbind(0), _by_step(entering)
    weights, biases = R.unbind(0), [bias.expand(2, B, S) for bias in b]
    one = s.new_ones(())
    for step in range(T):
        k = step if keep else 0
        states[0][k].copy_(outputs[step - 1] if step else s)
        for d in range(D):
            before, after = states[d][k], states[d + 1][k] if d + 1 < D else outputs[step]
            z = before if n is None else torch.mul(before, n, out=masked)
            torch.baddbmm(biases[d] if d else inputs[step], z.expand(2, B, S), weights[d], out=sums[d][k])
            torch.lerp(before, tanh_(h[d][k], one), t[d][k].sigmoid_(), out=after)
    return y, gates, entering


def _by_step(buffer: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the views buffer[d, step] of all steps: creating them inside the loop would slow it down."""
    return [steps.unbind(0) for steps in buffer]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, W: Tensor, R: Tensor, b: Tensor, n: Tensor | None) -> Tensor:
        y, gates, entering = _forward(x, s, W, R, b, n, keep=True)
        ctx.save_for_backward(x, W, R, n, gates, entering)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R, n, gates, entering = ctx.saved_tensors
        D, _, T, B, S = gates.shape
        steps = block_steps(T, B)
        # gradients of the sums inside tanh and sigmoid, for one block of steps
        da = gates.new_empty(D, 2, steps, B, S)
        ds, by_t, change, dz = (gates.new_zeros(shape) for shape in ((B, S), (B, S), (B, S), (2, B, S)))
        dx, dW = x.new_empty(2, *x.shape[1:]), torch.zeros_like(W)
        dR, db = torch.zeros_like(R), R.new_zeros(D, 2, 1, S)

        h, t, states = _by_step(gates[:, 0]), _by_step(gates[:, 1]), _by_step(entering)
        sums, dh, dt = [a.unbind(1) for a in da], _by_step(da[:, 0]), _by_step(da[:, 1])
        weights = R.mT.contiguous().unbind(0)
        for stop in range(T, 0, -steps):
            start = max(0, stop - steps)
            for step in reversed(range(start, stop)):
                k = step - start
                ds.add_(dy[step])
                for d in reversed(range(D)):
                    h_d, t_d, dh_d, dt_d = h[d][step], t[d][step], dh[d][k], dt[d][k]
                    torch.mul(ds, t_d, out=by_t)
                    # dh = ds * t * (1 - h * h)
                    torch.mul(by_t, h_d, out=dh_d)
                    torch.addcmul(by_t, dh_d, h_d, value=-1, out=dh_d)
                    # dt = ds * t * (h - s) * (1 - t)
                    torch.sub(h_d, states[d][step], out=change).mul_(by_t)
                    torch.addcmul(change, change, t_d, value=-1, out=dt_d)
                    # ds = ds * (1 - t) + n * (gradient of the products)
                    ds.sub_(by_t)
                    torch.bmm(sums[d][k], weights[d], out=dz)
                    if n is None:
                        ds.add_(dz[0]).add_(dz[1])
                    else:
                        ds.addcmul_(dz[0], n[0]).addcmul_(dz[1], n[-1])

            rows = da[:, :, : stop - start].flatten(2, 3)
            for d in range(D):
                z = entering[d : d + 1, start:stop]
                z = z if n is None else z * n.unsqueeze(1)
                dR[d].baddbmm_(z.expand(2, -1, -1, -1).flatten(1, 2).mT, rows[d])
            dW.baddbmm_(x[:, start:stop].expand(2, -1, -1, -1).flatten(1, 2).mT, rows[0])
            dx[:, start:stop] = torch.bmm(rows[0], W.mT).view(2, stop - start, B, -1)
            db += rows.sum(2, keepdim=True)
        return dx if len(x) == 2 else dx.sum(0, keepdim=True), ds, dW, dR, db, None
