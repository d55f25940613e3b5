"""The gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), as in char-rnn or as in cuDNN and torch.

char-rnn applies the reset gate r before the recurrent product, and its z is the share of the new state. torch applies
r after the product, and its z is the share of the old state.
"""

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
    reset_after: Annotated[bool, "reset after the recurrent product, as cuDNN does, which is faster on a GPU"] = False,
) -> GRU:
    """Initialise as char-rnn does: uniform in +-0.08."""
    model = GRU(input_size, rnn_size, n_layers, dropout, reset_after)
    for p in model.parameters():
        nn.init.uniform_(p, -0.08, 0.08)
    return model


def cell(inputs: Tensor, h: Tensor, R: Tensor) -> Tensor:
    """Return the new h (B, H) after one time step of char-rnn's unit.

    inputs (B, 3H) are W x plus all biases. R (3H, H) are the recurrent weights.
    """
    H = h.shape[-1]
    x_rz, x_n = inputs.split((2 * H, H), -1)
    R_rz, R_n = R.split((2 * H, H))
    r, z = torch.addmm(x_rz, h, R_rz.t()).sigmoid().chunk(2, -1)
    n = torch.addmm(x_n, r * h, R_n.t()).tanh()
    return torch.lerp(h, n.to(h), z.to(h))  # z * n + (1 - z) * h, in h's dtype even under autocast


def cell_after(inputs: Tensor, h: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Return the new h (B, H) after one time step of torch's unit. inputs (B, 3H) are W x plus its biases."""
    x_r, x_z, x_n = inputs.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, R, b).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return torch.lerp(n, h, z)  # z * h + (1 - z) * n


def loop(x: Tensor, h: Tensor, W: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """Do the same as gru.scan, step by step: return the states (T, B, H) for x (T, B, I) or token ids x (T, B)."""
    states = []
    for inputs in F.linear(x, W, b) if x.is_floating_point() else lookup.columns(W, x) + b:
        h = cell(inputs, h, R)
        states.append(h)
    return torch.stack(states)


class GRU(nn.Module):
    """Stacked layers over one-hot tokens, with a linear decoder on top.

    Dropout acts between layers and before the decoder. The state is (h,), of shape (L, B, H). Both kinds of unit keep
    their weights in torch's nn.GRU, with rows in the order r, z, n.

    ``use_kernel = False`` leaves the time loop to autograd, as on a GPU.
    """

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, reset_after: bool) -> None:
        super().__init__()
        # nn.GRU applies dropout only between layers, and warns if there is just one layer
        self.gru = nn.GRU(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)
        self.reset_after = reset_after
        self.use_kernel = True

    @property
    def has_compiled_kernels(self) -> bool:
        return self.use_kernel and not self.reset_after

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids x, int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        if self.reset_after:
            h, last = lookup.run(self.gru, x, state[0] if state else None)
        else:
            h, last = self.reset_before(x, self.start(x.shape[1], state))
        return self.decoder(self.dropout(h)), (last,)

    def reset_before(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run all layers of char-rnn's units. Returns the top states (T, B, H) and last states (L, B, H)."""
        scan = gru.scan if self.use_kernel and x.device.type == "cpu" else loop
        below, last = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(state, self.weights(), strict=True)):
            below = scan(self.dropout(below) if layer else below, h, W, R, b + b_h)
            last.append(below[-1])
        return below, torch.stack(last)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one time step, for sampling: x int64 (B,), logits (B, V). Same as ``forward`` without dropout."""
        below, new = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(self.start(len(x), state), self.weights(), strict=True)):
            inputs = F.linear(below, W, b) if layer else lookup.columns(W, x) + b
            below = cell_after(inputs, h, R, b_h) if self.reset_after else cell(inputs + b_h, h, R)
            new.append(below)
        return self.decoder(below), (torch.stack(new),)

    def numpy_step(self) -> cells.Step:
        """Return ``step`` for numpy arrays, with the current weights: faster for a few rows on a CPU."""
        layers = [cells.GRU(*weights, self.reset_after) for weights in self.weights()]
        return cells.stack(layers, cells.Linear(*self.decoder.parameters()))

    def start(self, batch_size: int, state: State | None) -> Tensor:
        """Return the initial h (L, B, H): that of the given state, or zeros for None."""
        zeros = self.decoder.weight.new_zeros
        return zeros(self.gru.num_layers, batch_size, self.gru.hidden_size) if state is None else state[0]

    def weights(self) -> Iterator[Weights]:
        """Yield W (3H, in), R (3H, H), b and b' (3H,) of each layer."""
        flat: list[Any] = self.gru._flat_weights
        return zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
