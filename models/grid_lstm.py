"""2D Grid LSTM: a grid of LSTM blocks that pass hidden and memory vectors along time and along depth.

From Kalchbrenner, Danihelka and Graves, Grid Long Short-Term Memory, 2015 (arXiv 1507.01526). As in coreylynch's
grid-lstm program, depth is the prioritised dimension, and by default all layers share their depth weights.

``block`` is the paper's block for any number of dimensions. The model applies a two-dimensional block at each layer and
time step, in an order that lets torch's own LSTMs do the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import cycle
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.kernels import cells

State = tuple[Tensor, Tensor]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
Map = tuple[Tensor, Tensor]


def lstm(h: Sequence[Tensor], c: Tensor, maps: Sequence[Map], paper: bool = False) -> tuple[Tensor, Tensor]:
    """Return one dimension's new hidden and memory vectors, from the hidden vectors h (..., H) of all N dimensions.

    c (..., H) is the dimension's own memory, called m in the paper. ``maps`` has a weight (4H, H) and a bias (4H,) for
    each hidden vector, with rows in the order i, f, g, o. Concatenated, the weights are the paper's single matrix.

    If ``paper`` is true, h = tanh(o * c), as in the paper. Otherwise h = o * tanh(c), as in the program and in other
    LSTMs.
    """
    gates = reduce(torch.add, (F.linear(h_n, W, b) for h_n, (W, b) in zip(h, maps, strict=True)))
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return (o.sigmoid() * c).tanh() if paper else o.sigmoid() * c.tanh(), c


def block(
    h: Sequence[Tensor],
    c: Sequence[Tensor],
    maps: Sequence[Sequence[Map]],
    priority: Sequence[int] = (),
    paper: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Apply the N-dimensional Grid LSTM block to N hidden and N memory vectors, and return the new ones.

    Each dimension n has its own LSTM with the weights ``maps[n]``, and all of them read the same incoming hidden
    vectors. The dimensions in ``priority`` wait for the others and read their new hidden vectors instead.
    """
    h, c = list(h), list(c)
    others = [n for n in range(len(h)) if n not in priority]
    for dimensions in (others, priority):
        new = [lstm(h, c[n], maps[n], paper) for n in dimensions]
        for n, (h_n, c_n) in zip(dimensions, new, strict=True):
            h[n], c[n] = h_n, c_n
    return h, c


class GridLSTM(nn.Module):
    """Layers of blocks with N = 2 dimensions, time and depth, where depth is prioritised.

    Both LSTMs of a layer are torch's. Their input is the depth h of the layer below. Their hidden state is the time h:
    that of the previous step in the time LSTM, the new one in the depth LSTM. At every time step, the depth h starts as
    the token's embedding and the depth c as zeros. Dropout acts on the depth h that a layer passes up, never on the
    depth c. The state is (h, c) of the time LSTMs, each (L, B, H).
    """

    def __init__(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, tie_weights: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(input_size, rnn_size)
        self.time = nn.ModuleList(nn.LSTM(rnn_size, rnn_size) for _ in range(n_layers))
        self.depth = nn.ModuleList(nn.LSTMCell(rnn_size, rnn_size) for _ in range(1 if tie_weights else n_layers))
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(rnn_size, input_size)
        for p in self.parameters():
            nn.init.uniform_(p, -0.08, 0.08)
        for layer in self.weights():
            for _, _, _, b_hh in layer:
                i, f, g, o = b_hh.chunk(4)
                nn.init.ones_(f)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids x, int64 (T, B). Returns logits (T, B, V) and the state after step T.

        A layer's time LSTM does not depend on its depth LSTM, so it runs through all T steps first. The depth LSTM is
        not recurrent in time, so it takes all T * B positions at once.
        """
        depth_h = self.embedding(x)
        depth_c = torch.zeros_like(depth_h).flatten(0, 1)
        h, c = self.zeros(depth_h[0]) if state is None else state
        last = []
        layers = zip(self.time, cycle(self.depth))
        for (time, depth), h_k, c_k in zip(layers, h[:, None], c[:, None], strict=True):
            time_h, last_k = time(depth_h, (h_k, c_k))
            depth_h, depth_c = depth(depth_h.flatten(0, 1), (time_h.flatten(0, 1), depth_c))
            depth_h = self.dropout(depth_h).unflatten(0, x.shape)
            last.append(last_k)
        h, c = map(torch.cat, zip(*last, strict=True))
        return self.decoder(depth_h), (h, c)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Take one time step, for sampling: x int64 (B,), logits (B, V). Same as ``forward`` without dropout."""
        depth_h = self.embedding(x)
        depth_c = torch.zeros_like(depth_h)
        h, c = self.zeros(depth_h) if state is None else state
        new = []
        for h_k, c_k, (time, depth) in zip(h.unbind(), c.unbind(), self.weights(), strict=True):
            h_k, c_k = torch.lstm_cell(depth_h, (h_k, c_k), *time)
            depth_h, depth_c = torch.lstm_cell(depth_h, (h_k, depth_c), *depth)
            new.append((h_k, c_k))
        h, c = map(torch.stack, zip(*new, strict=True))
        return self.decoder(depth_h), (h, c)

    def numpy_step(self) -> cells.Step:
        """Return ``step`` for numpy arrays, with the current weights: faster for a few rows on a CPU."""
        layers = [(cells.LSTM(*time), cells.LSTM(*depth)) for time, depth in self.weights()]
        embedding = self.embedding.weight.detach().numpy()
        decode = cells.Linear(*self.decoder.parameters())

        def step(x: cells.Array, state: cells.State) -> tuple[cells.Array, cells.State]:
            depth_h = embedding[x]
            depth_c = 0 * depth_h
            new = []
            for (time, depth), h_k, c_k in zip(layers, *state, strict=True):
                h_k, c_k = time(depth_h, h_k, c_k)
                depth_h, depth_c = depth(depth_h, h_k, depth_c)
                new.append((h_k, c_k))
            return decode(depth_h), cells.joined(new)

        return step

    def zeros(self, h: Tensor) -> State:
        """Return the state before any text, for a batch of depth vectors h (B, H)."""
        zeros = h.new_zeros(len(self.time), *h.shape)
        return zeros, zeros

    def weights(self) -> Iterator[tuple[Weights, Weights]]:
        """Yield W_ih, W_hh, b_ih, b_hh of the time LSTM and of the depth LSTM of each layer."""
        times: list[Any] = [time._flat_weights for time in self.time]
        depths: list[Any] = [tuple(depth._parameters.values()) for depth in self.depth]
        return zip(times, cycle(depths))


def create(
    input_size: int,
    rnn_size: int,
    n_layers: int,
    dropout: float,
    *,
    tie_weights: Annotated[bool, "share one depth LSTM among all layers"] = True,
) -> nn.Module:
    """Initialise as grid-lstm does: uniform in +-0.08, but biases of 1 where the time h enters the forget gates."""
    return GridLSTM(input_size, rnn_size, n_layers, dropout, tie_weights)
