"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gates: Gers et al. 2000), as in char-rnn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.kernels import cells, lookup

State = tuple[Tensor, Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def create(input_size: int, rnn_size: int, n_layers: int, dropout: float) -> LSTM:
    """Initialise as char-rnn does: uniform in +-0.08, but biases of 1 where the input enters the forget gates."""
    model = LSTM(input_size, rnn_size, n_layers, dropout)
    for p in model.parameters():
        nn.init.uniform_(p, -0.08, 0.08)
    for layer in range(n_layers):
        i, f, g, o = getattr(model.lstm, f"bias_ih_l{layer}").chunk(4)
        nn.init.ones_(f)
    return model


def cell(inputs: Tensor, h: Tensor, c: Tensor, R: Tensor, b: Tensor) -> State:
    """Return the new h and c (B, H) after one time step of a layer. inputs (B, 4H) are W x + b."""
    i, f, g, o = F.linear(h, R, b).add_(inputs).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, c


class LSTM(nn.Module):
    """Stacked LSTM layers over one-hot tokens, with a linear decoder on top.

    Dropout acts between layers and before the decoder. The state is (h, c), each (L, B, H).
    """

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        # nn.LSTM applies dropout only between layers, and warns if there is just one layer
        self.lstm = nn.LSTM(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids x, int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        h, state = lookup.run(self.lstm, x, state)
        return self.decoder(self.dropout(h)), state

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one time step, for sampling: x int64 (B,), logits (B, V). Same as ``forward`` without dropout."""
        below, new = x, []
        for layer, (h, c, (W, R, b, b_h)) in enumerate(zip(*self.start(len(x), state), self.weights(), strict=True)):
            inputs = F.linear(below, W, b) if layer else lookup.columns(W, x) + b
            below, c = cell(inputs, h, c, R, b_h)
            new.append((below, c))
        h, c = map(torch.stack, zip(*new, strict=True))
        return self.decoder(below), (h, c)

    def numpy_step(self) -> cells.Step:
        """Return ``step`` for numpy arrays, with the current weights: faster for a few rows on a CPU."""
        layers = [cells.LSTM(*weights) for weights in self.weights()]
        return cells.stack(layers, cells.Linear(*self.decoder.parameters()))

    def start(self, batch_size: int, state: State | None) -> State:
        """Return the given state, or zeros for None."""
        if state is not None:
            return state
        zeros = self.decoder.weight.new_zeros(self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        return zeros, zeros

    def weights(self) -> Iterator[Weights]:
        """Yield W (4H, in), R (4H, H), b and b' (4H,) of each layer, with rows in the order i, f, g, o."""
        flat: list[Any] = self.lstm._flat_weights
        return zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
