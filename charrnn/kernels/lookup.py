"""torch's recurrent layers for token ids in place of one-hot vectors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def columns(W: Tensor, x: Tensor) -> Tensor:
    """Return the products of W (G, V) with the one-hot vectors of token ids x, int64 (...): (..., G)."""
    return F.embedding(x, W.t())


def run(rnn: nn.RNNBase, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Return the output and last state of an nn.LSTM, nn.GRU or nn.RNN for the one-hot vectors of x, int64 (T, B).

    Multiplying one-hot vectors by the first layer's W (G, V) only looks up columns, but torch's layers cannot look up.
    If V is larger than G, the layer gets the columns as input, and the identity matrix in place of W. The sums are
    exactly the same, and the input vectors have length G instead of V.
    """
    weights: list[Tensor] = rnn._flat_weights  # type: ignore[assignment]
    W = weights[0]
    G, V = W.shape
    if V <= G:
        return rnn(F.one_hot(x, V).to(W.dtype), state)  # type: ignore[no-any-return]
    if state is None:
        zeros = W.new_zeros(rnn.num_layers, x.shape[1], rnn.hidden_size)
        state = (zeros, zeros) if rnn.mode == "LSTM" else zeros
    layers: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[rnn.mode]
    weights = [torch.eye(G, dtype=W.dtype, device=W.device), *weights[1:]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights")  # on a GPU: they are not contiguous in memory
        # biases, layers, dropout between them, training mode, both directions, batch first
        y, *last = layers(columns(W, x), state, weights, True, rnn.num_layers, rnn.dropout, rnn.training, False, False)
    return y, tuple(last) if rnn.mode == "LSTM" else last[0]
