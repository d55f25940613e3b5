"""The plain recurrent network (Elman 1990) with tanh units, as in char-rnn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor]


def create(input_size: int, rnn_size: int, n_layers: int, dropout: float) -> RNN:
    """Start as char-rnn does: uniform in +-0.08."""
    model = RNN(input_size, rnn_size, n_layers, dropout)
    for p in model.parameters():
        nn.init.uniform_(p, -0.08, 0.08)
    return model


class RNN(nn.Module):
    """Characters one-hot into stacked layers h = tanh(W x + b + R h + b'), a linear decoder on the top one; dropout
    between layers and before the decoder. The state is (h,), of shape (L, B, H)."""

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        # torch drops between layers only, and warns where there is but one
        self.rnn = nn.RNN(input_size, rnn_size, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: int64 (T, B). Returns logits (T, B, V) and the state after step T."""
        one_hot = F.one_hot(x, self.rnn.input_size).to(self.decoder.weight.dtype)
        h, last = self.rnn(one_hot, state[0] if state else None)
        return self.decoder(self.dropout(h)), (last,)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step, for sampling: x int64 (B,), logits (B, V). Equal to ``forward`` without dropout."""
        (h,) = state or (self.decoder.weight.new_zeros(self.rnn.num_layers, len(x), self.rnn.hidden_size),)
        below, new = F.one_hot(x, self.rnn.input_size).to(h.dtype), []
        for weights, h_l in zip(self.rnn.all_weights, h.unbind(), strict=True):
            below = torch.rnn_tanh_cell(below, h_l, *weights)
            new.append(below)
        return self.decoder(below), (torch.stack(new),)
