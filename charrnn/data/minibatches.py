"""Minibatches, on which models are trained and scored: the protocol, and the two ways to lay out a text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.data.encode import IdArray, TokenIds

AHEAD = 1 << 20  # tokens read at once
IGNORED = -100  # target in y of a token that is not predicted; torch's own value


class Minibatches(Protocol):
    """Minibatches that a model is trained or scored on; ``Split`` is the usual kind."""

    @property
    def batch_size(self) -> int: ...

    @property
    def seq_length(self) -> int: ...

    @property
    def predicted(self) -> int:
        """Number of time steps that count; in the others y is IGNORED."""

    @property
    def carries(self) -> bool:
        """Whether an epoch starts from the state in which the previous one ended."""

    def __len__(self) -> int: ...

    def begins(self, k: int, /) -> bool:
        """Return whether minibatch k starts from a zero state instead of the state after minibatch k - 1."""

    def batch(self, k: int, /) -> tuple[Tensor, Tensor]:
        """Return minibatch k: token ids and their targets, each int64 (T, B). Raises IndexError."""

    def measure(self, model: nn.Module, /) -> dict[str, float]:
        """Return measures of a model besides the loss, by name."""


@dataclass(frozen=True, eq=False)
class Split:
    """Minibatches of one split of a text that is laid out as ``batch_size`` rows of ``row_length`` tokens."""

    # (N,)
    ids: TokenIds
    row_length: int
    # the time step of the rows at which the first minibatch begins
    start: int
    minibatches: int
    batch_size: int
    seq_length: int
    # whether an epoch starts from the state in which the previous one ended
    carries: bool
    # the n minibatches read last, by the index of the first: (B, n * T + 1) ids
    _read: dict[int, IdArray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return self.minibatches

    @property
    def predicted(self) -> int:
        """All time steps count."""
        return self.seq_length

    def begins(self, k: int) -> bool:
        return k == 0 and not self.carries

    def measure(self, model: nn.Module) -> dict[str, float]:
        """No measures besides the loss."""
        return {}

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Return minibatch k: token ids and the ids that follow them, each int64 (T, B).

        Raises IndexError, and UserError if the ids can no longer be read.
        """
        if not 0 <= k < self.minibatches:
            raise IndexError(f"minibatch {k} of {self.minibatches}")
        count = max(1, AHEAD // (self.batch_size * self.seq_length))
        first = k - k % count
        if first not in self._read:
            rows = self._rows(first, min(count, self.minibatches - first))
            self._read.clear()
            self._read[first] = rows
        step = (k - first) * self.seq_length
        window = self._read[first][:, step : step + self.seq_length + 1]
        ids = torch.from_numpy(window.T.astype(np.int64, order="C"))
        return ids[:-1], ids[1:]

    def _rows(self, first: int, count: int) -> IdArray:
        """Return the ids of ``count`` consecutive minibatches and one more time step: (B, count * T + 1)."""
        length, end = count * self.seq_length + 1, self.batch_size * self.row_length
        rows = np.empty((self.batch_size, length), self.ids.dtype)
        for row in range(self.batch_size):
            start = row * self.row_length + self.start + first * self.seq_length
            there = min(length, end - start)
            rows[row, :there] = self.ids[start : start + there]
            # only the last token of a text split by fractions has no next token: its target is the first token
            rows[row, there:] = self.ids[: length - there]
        return rows


def split_by_fractions(
    ids: TokenIds, batch_size: int, seq_length: int, train_frac: float, val_frac: float
) -> dict[str, Split]:
    """Return the train, val and test splits of a text in char-rnn's layout, except those without a minibatch.

    The text is cut to whole minibatches, and the state is carried from epoch to epoch.
    """
    total = len(ids) // (batch_size * seq_length)
    n_train = math.floor(total * train_frac)
    # 1 - train_frac - val_frac may differ from 0 by rounding
    no_test = math.isclose(train_frac + val_frac, 1, abs_tol=1e-9)
    n_val = total - n_train if no_test else math.floor(total * val_frac)
    splits, before = {}, 0
    for name, count in (("train", n_train), ("val", n_val), ("test", total - n_train - n_val)):
        if count:
            start = before * seq_length
            splits[name] = Split(ids, total * seq_length, start, count, batch_size, seq_length, carries=True)
        before += count
    return splits


def split_of_file(ids: TokenIds, batch_size: int, seq_length: int) -> Split:
    """Return a split that has its own file, in the layout of the RHN program and the PTB reader.

    No target wraps around, and each epoch starts from a zero state.
    """
    row_length = len(ids) // batch_size
    return Split(ids, row_length, 0, max(0, (row_length - 1) // seq_length), batch_size, seq_length, carries=False)
