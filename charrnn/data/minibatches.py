"""What a model is trained and evaluated on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.data.encode import Tokens


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a text as minibatches.

    tokens: (N,) numbers of characters or words, laid out as ``batch_size`` rows of ``row_length``; the columns from
    ``start`` on make ``minibatches`` of ``seq_length`` each. carries: whether an epoch goes on with the
    state in which the last one ended.
    """

    tokens: Tokens
    row_length: int
    start: int
    minibatches: int
    batch_size: int
    seq_length: int
    carries: bool

    def __len__(self) -> int:
        return self.minibatches

    @property
    def predicted(self) -> int:
        """All time steps count."""
        return self.seq_length

    def begins(self, k: int) -> bool:
        """Whether minibatch k is read from a zero state, not from the one that the last one ended in."""
        return k == 0 and not self.carries

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The loss says all."""
        return {}

    @property
    def characters(self) -> int:
        """How many characters one pass predicts."""
        return self.minibatches * self.batch_size * self.seq_length

    @cached_property
    def _places(self) -> NDArray[np.intp]:
        """Where the tokens of the first minibatch and the column after it are: (T + 1, B)."""
        columns = self.start + np.arange(self.seq_length + 1)
        rows = self.row_length * np.arange(self.batch_size)
        return columns[:, None] + rows

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Minibatch k, from 0: characters and the ones that follow them, each int64 (T, B). Raises IndexError."""
        if not 0 <= k < self.minibatches:
            raise IndexError(f"minibatch {k} of {self.minibatches}")
        # only the very last character of a text split by fractions has none after it: it wraps to the first
        window = self.tokens.take(self._places + k * self.seq_length, mode="wrap")
        tokens = torch.from_numpy(window.astype(np.int64))
        return tokens[:-1], tokens[1:]


IGNORED = -100  # stands in y for a character that is read, not predicted: torch's own sign


class Minibatches(Protocol):
    """What a model is trained or evaluated on; charrnn.data.Split is the usual one.

    predicted: how many of a minibatch's time steps count, the others being IGNORED in y. begins: whether minibatch k is
    read from a zero state, not from the one that the last one ended in. measure: what else than the loss tells how
    good a model is, by name.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def seq_length(self) -> int: ...

    @property
    def predicted(self) -> int: ...

    @property
    def carries(self) -> bool: ...

    def __len__(self) -> int: ...

    def begins(self, k: int, /) -> bool: ...

    def batch(self, k: int, /) -> tuple[Tensor, Tensor]: ...

    def measure(self, model: nn.Module, /) -> dict[str, float]: ...
