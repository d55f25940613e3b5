"""One time step of one layer in numpy, for sampling: faster than torch for a few rows.

A cell takes its weights from torch's when it is built. It is called with

x  (N, I)   the layer's input, or token ids, int64 (N,): the product with a one-hot vector is a row of W
h  (N, H)   the state after the previous step, and for an LSTM also its memory c (N, H); neither is modified

and returns the new state as a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
State = tuple[Array, ...]
Cell = Callable[..., State]
Step = Callable[[Array, State], tuple[Array, State]]


def stack(cells: Sequence[Cell], decoder: Linear) -> Step:
    """Return a function that takes one time step through all layers and the decoder.

    It takes token ids, int64 (N,), and a state of arrays (L, N, H). It returns logits (N, V) and the new state.
    """

    def step(x: Array, state: State) -> tuple[Array, State]:
        below, new = x, []
        for layer, cell in enumerate(cells):
            parts = cell(below, *[part[layer] for part in state])
            new.append(parts)
            below = parts[0]
        return decoder(below), joined(new)

    return step


def joined(layers: Iterable[State]) -> State:
    """Stack the layers' states, arrays (N, H), into the model's state, arrays (L, N, H)."""
    return tuple([np.array(part) for part in zip(*layers, strict=True)])


def arrays(*tensors: Tensor) -> list[Array]:
    """Return weights as arrays that share their memory, with matrices transposed to (in, out) for products x W."""
    return [t.detach().t().numpy() for t in tensors]


def product(x: Array, W: Array) -> Array:
    """Return x W as a new array (N, out)."""
    result: Array = W[x] if x.ndim == 1 else x @ W
    return result


class Gates:
    """Apply sigmoid (for each "s" in ``kinds``) or tanh (for each "t") to blocks of H sums, in place.

    One tanh computes them all, since sigmoid a = (1 + tanh(a / 2)) / 2.
    """

    def __init__(self, kinds: str, H: int, b: Array) -> None:
        self.scale = np.repeat([0.5 if kind == "s" else 1 for kind in kinds], H).astype(b.dtype)
        self.shift = 1 - self.scale

    def __call__(self, a: Array) -> None:
        a *= self.scale
        np.tanh(a, out=a)
        a *= self.scale
        a += self.shift


class Linear:
    """y = x W + b, (N, V)."""

    def __init__(self, W: Tensor, b: Tensor) -> None:
        self.W, self.b = arrays(W, b)

    def __call__(self, x: Array) -> Array:
        y: Array = x @ self.W
        y += self.b
        return y


class RNN:
    """h = tanh(W x + b + R h + b')."""

    def __init__(self, W: Tensor, R: Tensor, b: Tensor, b_h: Tensor) -> None:
        self.W, self.R, self.b = arrays(W, R, b + b_h)

    def __call__(self, x: Array, h: Array) -> State:
        a = product(x, self.W)
        a += h @ self.R
        a += self.b
        return (np.tanh(a, out=a),)


class LSTM:
    """An LSTM layer with gates in the order i, f, g, o."""

    def __init__(self, W: Tensor, R: Tensor, b: Tensor, b_h: Tensor) -> None:
        self.W, self.R, self.b = arrays(W, R, b + b_h)
        self.activate = Gates("ssts", R.shape[1], self.b)

    def __call__(self, x: Array, h: Array, c: Array) -> State:
        H = h.shape[-1]
        a = product(x, self.W)
        a += h @ self.R
        a += self.b
        self.activate(a)
        i, f, g, o = a[:, :H], a[:, H : 2 * H], a[:, 2 * H : 3 * H], a[:, 3 * H :]
        i *= g
        c = f * c
        c += i
        return o * np.tanh(c), c


class GRU:
    """A GRU layer with gates in the order r, z, n: char-rnn's unit, or torch's if ``reset_after``."""

    def __init__(self, W: Tensor, R: Tensor, b: Tensor, b_h: Tensor, reset_after: bool) -> None:
        H = R.shape[1]
        self.W, self.b, self.b_gates, self.b_n = arrays(W, b, b_h[: 2 * H], b_h[2 * H :])
        self.R_gates, self.R_n = arrays(R[: 2 * H], R[2 * H :])
        self.activate = Gates("ss", H, self.b)
        self.reset_after = reset_after

    def __call__(self, x: Array, h: Array) -> State:
        H = h.shape[-1]
        a = product(x, self.W)
        a += self.b
        gates, n = a[:, : 2 * H], a[:, 2 * H :]
        gates += h @ self.R_gates
        gates += self.b_gates
        self.activate(gates)
        r, z = gates[:, :H], gates[:, H:]
        if self.reset_after:
            n += r * (h @ self.R_n + self.b_n)
            n = np.tanh(n)
            return (n + z * (h - n),)
        n += (r * h) @ self.R_n
        n += self.b_n
        n = np.tanh(n)
        return (h + z * (n - h),)


class Highway:
    """An RHN layer of depth D. W (2, I, S) and R (D, 2, S, S) multiply from the right; b (D, 2, 1, S)."""

    def __init__(self, W: Tensor, R: Tensor, b: Tensor) -> None:
        # put the candidate and the transform gate next to each other, so that one product computes both
        self.W = W.detach().transpose(0, 1).flatten(1).numpy()
        self.R = R.detach().transpose(1, 2).flatten(2).numpy()
        self.b = b.detach().flatten(1).numpy()
        self.activate = Gates("ts", R.shape[-1], self.b)

    def __call__(self, x: Array, s: Array) -> State:
        S = s.shape[-1]
        for d, (R, b) in enumerate(zip(self.R, self.b, strict=True)):
            a = s @ R
            a += b
            if d == 0:
                a += product(x, self.W)
            self.activate(a)
            h, t = a[:, :S], a[:, S:]
            s = s + t * (h - s)
        return (s,)
