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
    """One layer. from_input holds (W_f, W_n); in the first layer, which reads token ids, it is a row look-up."""

    def __init__(self, from_input: nn.Module, rnn_size: int, gate_bias: float) -> None:
        super().__init__()
        self.from_input = from_input
        self.gate = nn.Linear(rnn_size, rnn_size)
        self.candidate = nn.Linear(rnn_size, rnn_size)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute all time steps: first the input products at once, then the recurrence step by step."""
        outputs = []
        for inputs in self.from_input(x):
            h = self.step(inputs, h)
            outputs.append(h)
        return torch.stack(outputs)

    def step(self, inputs: Tensor, h: Tensor) -> Tensor:
        """Compute one time step from the input products (B, 2H) and h (B, H). Return the new h."""
        to_gate, to_candidate = inputs.chunk(2, -1)
        f = torch.sigmoid(to_gate + self.gate(h))
        n = torch.tanh(to_candidate + self.candidate(f * h))
        return torch.lerp(h, n, f)  # (1 - f) * h + f * n in one operation


class MGU(nn.Module):
    """Stacked layers and a linear decoder, with dropout before all but the first layer. State: (h,), h (L, B, H)."""

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, gate_bias: float) -> None:
        super().__init__()
        first: list[nn.Module] = [nn.Embedding(input_size, 2 * rnn_size)]
        rest = [nn.Linear(rnn_size, 2 * rnn_size, bias=False) for _ in range(n_layers - 1)]
        self.layers = nn.ModuleList(Layer(inputs, rnn_size, gate_bias) for inputs in first + rest)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits (T, B, input_size) and the state after step T. x: token ids, int64 (T, B)."""
        outputs, last = x, []
        for number, (layer, h) in enumerate(zip(self.layers, self.start(x.shape[1], state), strict=True)):
            outputs = layer(self.dropout(outputs) if number else x, h)
            last.append(outputs[-1])
        return self.decoder(self.dropout(outputs)), (torch.stack(last),)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Compute one time step, for sampling. x: token ids (B,). Return logits (B, input_size) and the state."""
        h, last = x, []
        for layer, before in zip(self.layers, self.start(len(x), state), strict=True):
            h = layer.step(layer.from_input(h), before)
            last.append(h)
        return self.decoder(h), (torch.stack(last),)

    def start(self, batch_size: int, state: State | None) -> Tensor:
        zeros = self.decoder.weight.new_zeros
        return zeros(len(self.layers), batch_size, self.decoder.in_features) if state is None else state[0]
