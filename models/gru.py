"""The gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), as in char-rnn or as in cuDNN."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def cell(inputs: Tensor, h: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """One time step of char-rnn's unit: the new h (B, H).

    inputs: what r, z and n take from the layer's input, biases included, (B, 3H); W (3H, H) and b (3H,): what they take
    from h. The reset gate r acts before the product, and z is the share of the new: in torch's GRU r acts after it, and
    z is the share of the old.
    """
    H = h.shape[-1]
    gates = torch.sigmoid(inputs[:, : 2 * H] + F.linear(h, W[: 2 * H], b[: 2 * H]))
    r, z = gates.chunk(2, -1)
    n = torch.tanh(inputs[:, 2 * H :] + F.linear(r * h, W[2 * H :], b[2 * H :]))
    return z * n + (1 - z) * h


class GRU(nn.Module):
    """Characters one-hot into stacked units, a linear decoder on the top one; dropout between layers and before the
    decoder. The state is (h,), of shape (L, B, H). Both functions have the weights of torch's nn.GRU: rows r, z, n."""

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, reset_after: bool) -> None:
        super().__init__()
        # torch drops between layers only, and warns where there is but one
        self.gru = nn.GRU(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)
        self.reset_after = reset_after

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        one_hot = F.one_hot(x, self.gru.input_size).to(self.decoder.weight.dtype)
        if self.reset_after:
            h, last = self.gru(one_hot, state[0] if state else None)
        else:
            h, last = self.reset_before(one_hot, self.start(x.shape[1], state))
        return self.decoder(self.dropout(h)), (last,)

    def reset_before(self, below: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All layers over all time steps, as char-rnn computes them: top states (T, B, H), last states (L, B, H)."""
        last = []
        for layer, h in enumerate(state):
            W_ih, W_hh, b_ih, b_hh = self.weights(layer)
            below = self.dropout(below) if layer else below
            states = []
            for inputs in F.linear(below, W_ih, b_ih):  # for all time steps at once: it does not wait for h
                h = cell(inputs, h, W_hh, b_hh)
                states.append(h)
            below = torch.stack(states)
            last.append(h)
        return below, torch.stack(last)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step, for sampling: x int64 (B,), logits (B, V). Equal to ``forward`` without dropout."""
        below = F.one_hot(x, self.gru.input_size).to(self.decoder.weight.dtype)
        new = []
        for layer, h in enumerate(self.start(len(x), state)):
            W_ih, W_hh, b_ih, b_hh = self.weights(layer)
            if self.reset_after:
                below = torch.gru_cell(below, h, W_ih, W_hh, b_ih, b_hh)
            else:
                below = cell(F.linear(below, W_ih, b_ih), h, W_hh, b_hh)
            new.append(below)
        return self.decoder(below), (torch.stack(new),)

    def start(self, batch_size: int, state: State | None) -> Tensor:
        zeros = self.decoder.weight.new_zeros
        return zeros(self.gru.num_layers, batch_size, self.gru.hidden_size) if state is None else state[0]

    def weights(self, layer: int) -> Weights:
        """W_ih (3H, in), W_hh (3H, H), b_ih and b_hh (3H,) of a layer."""
        W_ih, W_hh, b_ih, b_hh = self.gru.all_weights[layer]
        return W_ih, W_hh, b_ih, b_hh
