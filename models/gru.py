"""The gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), as in char-rnn or as in cuDNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.kernels import cells, gru, lookup

State = tuple[Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def create(
    input_size: int,
    rnn_size: int,
    n_layers: int,
    dropout: float,
    *,
    reset_after: Annotated[bool, "reset after the recurrent product, as cuDNN: faster on a GPU"] = False,
) -> GRU:
    """Start as char-rnn does: uniform in +-0.08."""
    model = GRU(input_size, rnn_size, n_layers, dropout, reset_after)
    for p in model.parameters():
        nn.init.uniform_(p, -0.08, 0.08)
    return model


def cell(inputs: Tensor, h: Tensor, R: Tensor) -> Tensor:
    """One time step of char-rnn's unit: the new h (B, H).

    inputs: what r, z and n take from the layer's input, all biases included, (B, 3H); R (3H, H): recurrent weights. The
    reset gate r acts before the product, and z is the share of the new: in torch's GRU r acts after it, and z is the
    share of the old.
    """
    H = h.shape[-1]
    for_gates, for_n = inputs.split((2 * H, H), -1)
    R_gates, R_n = R.split((2 * H, H))
    r, z = torch.addmm(for_gates, h, R_gates.t()).sigmoid().chunk(2, -1)
    n = torch.addmm(for_n, r * h, R_n.t()).tanh()
    return torch.lerp(h, n.to(h), z.to(h))  # z * n + (1 - z) * h, in h's type also under autocast


def cell_after(inputs: Tensor, h: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """One time step of torch's unit, whose reset gate acts after the product: the new h (B, H)."""
    for_r, for_z, for_n = inputs.chunk(3, -1)
    from_r, from_z, from_n = F.linear(h, R, b).chunk(3, -1)
    r, z = (for_r + from_r).sigmoid(), (for_z + from_z).sigmoid()
    n = (for_n + r * from_n).tanh()
    return torch.lerp(n, h, z)  # z * h + (1 - z) * n


def loop(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """All time steps of a layer, x (T, B, I), or characters (T, B): the states (T, B, H) after each. What gru.scan
    computes fast."""
    states = []
    for inputs in F.linear(x, W, b) if x.is_floating_point() else lookup.columns(W, x) + b:
        h = cell(inputs, h, R)
        states.append(h)
    return torch.stack(states)


class GRU(nn.Module):
    """Characters one-hot into stacked units, a linear decoder on the top one; dropout between layers and before the
    decoder. The state is (h,), of shape (L, B, H). Both functions have the weights of torch's nn.GRU: rows r, z, n.

    ``use_kernel = False`` leaves the time loop to autograd, as on a GPU.
    """

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, reset_after: bool) -> None:
        super().__init__()
        # torch drops between layers only, and warns where there is but one
        self.gru = nn.GRU(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)
        self.reset_after = reset_after
        self.use_kernel = True

    @property
    def has_compiled_kernels(self) -> bool:
        return self.use_kernel and not self.reset_after

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        if self.reset_after:
            h, last = lookup.run(self.gru, x, state[0] if state else None)
        else:
            h, last = self.reset_before(x, self.start(x.shape[1], state))
        return self.decoder(self.dropout(h)), (last,)

    def reset_before(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All layers over all time steps, as char-rnn computes them: top states (T, B, H), last states (L, B, H)."""
        scan = gru.scan if self.use_kernel and x.device.type == "cpu" else loop
        below, last = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(state, self.weights(), strict=True)):
            below = scan(self.dropout(below) if layer else below, h, W, R, b + b_h)
            last.append(below[-1])
        return below, torch.stack(last)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step, for sampling: x int64 (B,), logits (B, V). Equal to ``forward`` without dropout."""
        below, new = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(self.start(len(x), state), self.weights(), strict=True)):
            inputs = F.linear(below, W, b) if layer else W.index_select(1, x).t() + b
            below = cell_after(inputs, h, R, b_h) if self.reset_after else cell(inputs + b_h, h, R)
            new.append(below)
        return self.decoder(below), (torch.stack(new),)

    def numpy_step(self) -> cells.Step:
        """``step`` with the weights as they are now, on numpy arrays: faster for a few rows on a CPU."""
        layers = [cells.GRU(*weights, self.reset_after) for weights in self.weights()]
        return cells.stack(layers, cells.Linear(*self.decoder.parameters()))

    def start(self, batch_size: int, state: State | None) -> Tensor:
        zeros = self.decoder.weight.new_zeros
        return zeros(self.gru.num_layers, batch_size, self.gru.hidden_size) if state is None else state[0]

    def weights(self) -> Iterator[Weights]:
        """W (3H, in), R (3H, H), b and b' (3H,), layer by layer."""
        flat: list[Any] = self.gru._flat_weights
        return zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
