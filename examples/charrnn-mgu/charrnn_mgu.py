"""The minimal gated unit (Zhou et al. 2016, arXiv 1603.09420): a GRU whose two gates are one.

f = sigmoid(W_f x + R_f h + b_f)        n = tanh(W_n x + R_n (f * h) + b_n)        h = (1 - f) * h + f * n
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

State = tuple[Tensor]


def create(
    input_size: int,
    rnn_size: int,
    n_layers: int,
    dropout: float,
    *,
    gate_bias: Annotated[float, "initial bias of the gates; lower = longer memory"] = 0.0,
) -> MGU:
    return MGU(input_size, rnn_size, n_layers, dropout, gate_bias)


class Layer(nn.Module):
    """One layer of units. from_input holds (W_f, W_n): a row look-up for the first layer, whose input is one-hot."""

    def __init__(self, from_input: nn.Module, rnn_size: int, gate_bias: float) -> None:
        super().__init__()
        self.from_input = from_input
        self.gate = nn.Linear(rnn_size, rnn_size)
        self.candidate = nn.Linear(rnn_size, rnn_size)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """All time steps: the products with the input at once, then what has to wait for the step before."""
        outputs = []
        for inputs in self.from_input(x):
            h = self.step(inputs, h)
            outputs.append(h)
        return torch.stack(outputs)

    def step(self, inputs: Tensor, h: Tensor) -> Tensor:
        """One time step: inputs (B, 2H) from the layer below, h (B, H)."""
        to_gate, to_candidate = inputs.chunk(2, -1)
        f = torch.sigmoid(to_gate + self.gate(h))
        n = torch.tanh(to_candidate + self.candidate(f * h))
        return torch.lerp(h, n, f)  # (1 - f) * h + f * n in one operation


class MGU(nn.Module):
    """Stacked layers and a linear decoder, dropout before each of them but the first. The state is (h,), (L, B, H)."""

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, gate_bias: float) -> None:
        super().__init__()
        first: list[nn.Module] = [nn.Embedding(input_size, 2 * rnn_size)]
        rest = [nn.Linear(rnn_size, 2 * rnn_size, bias=False) for _ in range(n_layers - 1)]
        self.layers = nn.ModuleList(Layer(inputs, rnn_size, gate_bias) for inputs in first + rest)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: int64 (T, B). Returns logits (T, B, input_size) and the state after step T."""
        outputs, last = x, []
        for number, (layer, h) in enumerate(zip(self.layers, self.start(x.shape[1], state), strict=True)):
            outputs = layer(self.dropout(outputs) if number else x, h)
            last.append(outputs[-1])
        return self.decoder(self.dropout(outputs)), (torch.stack(last),)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step, for sampling: x int64 (B,), logits (B, input_size)."""
        h, last = x, []
        for layer, before in zip(self.layers, self.start(len(x), state), strict=True):
            h = layer.step(layer.from_input(h), before)
            last.append(h)
        return self.decoder(h), (torch.stack(last),)

    def start(self, batch_size: int, state: State | None) -> Tensor:
        zeros = self.decoder.weight.new_zeros
        return zeros(len(self.layers), batch_size, self.decoder.in_features) if state is None else state[0]
