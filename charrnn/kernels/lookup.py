"""torch's recurrent layers over numbers of characters or words, which stand for one-hot vectors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def columns(W: Tensor, x: Tensor) -> Tensor:
    """The products of W (G, V) with the one-hot vectors of x, int64 (...): (..., G)."""
    return F.embedding(x, W.t())


def run(rnn: nn.RNNBase, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """What an nn.LSTM, nn.GRU or nn.RNN gives for the one-hot vectors of x, int64 (T, B): output and last state.

    The product of the first layer's W (G, V) with them is a choice of columns, but torch's layers know only products.
    With more characters than W has rows they are given the columns, and the identity in place of W: the sums are the
    very same, the vectors are shorter, and their length no longer grows with the vocabulary.
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
        warnings.filterwarnings("ignore", "RNN module weights")  # on a GPU: that they are not side by side in memory
        # has biases, layers, dropout between them, whether in training, both directions, batch first
        y, *last = layers(columns(W, x), state, weights, True, rnn.num_layers, rnn.dropout, rnn.training, False, False)
    return y, tuple(last) if rnn.mode == "LSTM" else last[0]
