"""The plain recurrent network (Elman 1990) with tanh units, as in char-rnn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.kernels import cells, lookup, rnn

State = tuple[Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def create(input_size: int, rnn_size: int, n_layers: int, dropout: float) -> RNN:
    """Initialise as char-rnn does: uniform in +-0.08."""
    model = RNN(input_size, rnn_size, n_layers, dropout)
    for p in model.parameters():
        nn.init.uniform_(p, -0.08, 0.08)
    return model


class RNN(nn.Module):
    """Stacked layers h = tanh(W x + b + R h + b') over one-hot tokens, with a linear decoder on top.

    Dropout acts between layers and before the decoder. The state is (h,), of shape (L, B, H).

    With ``use_kernel = False``, torch's own RNN does the same computation, as on a GPU.
    """

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        # nn.RNN applies dropout only between layers, and warns if there is just one layer
        self.rnn = nn.RNN(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)
        self.use_kernel = True

    @property
    def has_compiled_kernels(self) -> bool:
        return self.use_kernel

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids x, int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        if self.use_kernel and x.device.type == "cpu":
            h, last = self.scan(x, self.start(x.shape[1], state))
        else:
            h, last = lookup.run(self.rnn, x, state[0] if state else None)
        return self.decoder(self.dropout(h)), (last,)

    def scan(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run all layers, faster on a CPU than torch's RNN.

        Returns the top layer's states (T, B, H) and all last states (L, B, H).
        """
        below, last = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(state, self.weights(), strict=True)):
            below = rnn.scan(self.dropout(below) if layer else x, h, W, R, b + b_h)
            last.append(below[-1])
        return below, torch.stack(last)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one time step, for sampling: x int64 (B,), logits (B, V). Same as ``forward`` without dropout."""
        below, new = x, []
        for layer, (h, (W, R, b, b_h)) in enumerate(zip(self.start(len(x), state), self.weights(), strict=True)):
            inputs = F.linear(below, W, b) if layer else lookup.columns(W, x) + b
            below = F.linear(h, R, b_h).add_(inputs).tanh_()
            new.append(below)
        return self.decoder(below), (torch.stack(new),)

    def numpy_step(self) -> cells.Step:
        """Return ``step`` for numpy arrays, with the current weights: faster for a few rows on a CPU."""
        layers = [cells.RNN(*weights) for weights in self.weights()]
        return cells.stack(layers, cells.Linear(*self.decoder.parameters()))

    def start(self, batch_size: int, state: State | None) -> Tensor:
        """Return the initial h (L, B, H): that of the given state, or zeros for None."""
        zeros = self.decoder.weight.new_zeros
        return zeros(self.rnn.num_layers, batch_size, self.rnn.hidden_size) if state is None else state[0]

    def weights(self) -> Iterator[Weights]:
        """Yield W (H, in), R (H, H), b and b' (H,) of each layer."""
        flat: list[Any] = self.rnn._flat_weights
        return zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
