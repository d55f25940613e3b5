"""The same networks in plain torch, as you would write them without charrnn, and formulas for their cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]


class Layers(nn.Module):
    """nn.LSTM, nn.GRU or nn.RNN on one-hot characters, with a linear decoder."""

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        self.layers, self.decoder = layers, nn.Linear(layers.hidden_size, layers.input_size)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        one_hot = F.one_hot(x, self.layers.input_size).to(self.decoder.weight.dtype)
        given = state[0] if state and len(state) == 1 else state
        h, last = self.layers(one_hot, given)
        return self.decoder(h), last if isinstance(last, tuple) else (last,)


class GRULoop(nn.Module):
    """char-rnn's GRU as a Python loop over time steps. look_up: index the weights, without one-hot vectors."""

    def __init__(self, V: int, H: int, L: int, look_up: bool) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(H if layer else V, 3 * H) for layer in range(L))
        self.gates = nn.ModuleList(nn.Linear(H, 2 * H) for _ in range(L))
        self.candidates = nn.ModuleList(nn.Linear(H, H) for _ in range(L))
        self.decoder = nn.Linear(H, V)
        self.look_up = look_up

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        V, H = self.decoder.out_features, self.decoder.in_features
        hidden = state[0] if state else self.decoder.weight.new_zeros(len(self.gates), x.shape[1], H)
        below, last = None, []
        layers: Any = zip(hidden, self.inputs, self.gates, self.candidates, strict=True)
        for h, inputs, gates, candidate in layers:
            if below is not None:
                entering = inputs(below)
            elif self.look_up:
                entering = F.embedding(x, inputs.weight.t()) + inputs.bias
            else:
                entering = inputs(F.one_hot(x, V).to(h.dtype))
            states = []
            for a in entering:
                r, z = torch.sigmoid(a[:, : 2 * H] + gates(h)).chunk(2, 1)
                n = torch.tanh(a[:, 2 * H :] + candidate(r * h))
                h = z * n + (1 - z) * h
                states.append(h)
            below = torch.stack(states)
            last.append(h)
        return self.decoder(below), (torch.stack(last),)


class Grid(nn.Module):
    """The Grid LSTM with tied depth weights: in each layer an nn.LSTM over time, then an nn.LSTMCell over T * B."""

    def __init__(self, V: int, H: int, L: int) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(V, H), nn.Linear(H, V)
        self.time, self.depth = nn.ModuleList(nn.LSTM(H, H) for _ in range(L)), nn.LSTMCell(H, H)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        h = self.embedding(x)
        c = torch.zeros_like(h).flatten(0, 1)
        last = []
        for layer, time in enumerate(self.time):
            given = (state[0][layer : layer + 1], state[1][layer : layer + 1]) if state else None
            time_h, end = time(h, given)
            h, c = self.depth(h.flatten(0, 1), (time_h.flatten(0, 1), c))
            h = h.unflatten(0, x.shape)
            last.append(end)
        return self.decoder(h), (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))


class RHNLoop(nn.Module):
    """The recurrent highway network without dropout, as a Python loop over time steps and depths."""

    def __init__(self, V: int, H: int, L: int, depth: int) -> None:
        super().__init__()
        sizes = [min(V, H)] + [H] * (L - 1)
        self.embedding, self.decoder = nn.Embedding(V, sizes[0]), nn.Linear(H, V)
        self.inputs = nn.ModuleList(nn.Linear(size, 2 * H, bias=False) for size in sizes)
        self.depths = nn.ModuleList(nn.ModuleList(nn.Linear(H, 2 * H) for _ in range(depth)) for _ in sizes)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        hidden = (
            state[0] if state else self.decoder.weight.new_zeros(len(self.inputs), x.shape[1], self.decoder.in_features)
        )
        below, last = self.embedding(x), []
        layers: Any = zip(hidden, self.inputs, self.depths, strict=True)
        for s, inputs, depths in layers:
            states = []
            for a in inputs(below):
                for d, recurrent in enumerate(depths):
                    h, t = (recurrent(s) if d else a + recurrent(s)).chunk(2, 1)
                    h, t = torch.tanh(h), torch.sigmoid(t)
                    s = t * h + (1 - t) * s
                states.append(s)
            below = torch.stack(states)
            last.append(s)
        return self.decoder(below), (torch.stack(last),)


def plain(name: str, V: int, H: int, L: int, depth: int = 5) -> dict[str, nn.Module]:
    """Return the plain networks that a model is compared with, by name. Raises ValueError for an unknown model."""
    match name:
        case "lstm":
            return {"nn.LSTM": Layers(nn.LSTM(V, H, L))}
        case "gru":
            return {"loop, one-hot": GRULoop(V, H, L, look_up=False), "loop, look-up": GRULoop(V, H, L, look_up=True)}
        case "gru -reset_after 1":
            return {"nn.GRU": Layers(nn.GRU(V, H, L))}
        case "rnn":
            return {"nn.RNN": Layers(nn.RNN(V, H, L))}
        case "grid_lstm":
            return {"nn.LSTM + nn.LSTMCell": Grid(V, H, L)}
        case "rhn":
            return {"loop": RHNLoop(V, H, L, depth)}
    raise ValueError(f"unknown model {name}")


def flops(name: str, V: int, H: int, L: int, depth: int = 5) -> int:
    """Return the number of floating-point operations in the matrix products for one character in the forward pass.

    A product with a one-hot vector does not count, since it is a look-up. A training iteration takes three times as
    many: forward, gradients of the inputs, gradients of the weights.
    """
    layers = {"lstm": 4, "gru": 3, "gru -reset_after 1": 3, "rnn": 1}
    if name in layers:
        multiplications = layers[name] * H * H * (2 * L - 1)
    elif name == "grid_lstm":
        multiplications = L * 2 * 4 * H * 2 * H
    else:
        multiplications = L * depth * 2 * H * H + 2 * H * (min(V, H) + H * (L - 1))
    return 2 * (multiplications + H * V)
