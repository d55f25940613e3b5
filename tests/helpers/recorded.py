"""Read recordings of the original programs, and remember which arrays were compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.evaluation.loss import Score, losses
from charrnn.model import evaluating

TOLERANCE = 1e-10

Arrays = Mapping[str, np.ndarray]


class Recording:
    """The arrays of one file. ``given`` reads an input, ``compare`` checks a result, ``seen`` has the names of both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path) as file:
            self.arrays = dict(file)
        self.seen: set[str] = set()

    def given(self, key: str) -> np.ndarray:
        self.seen.add(key)
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.given(key))

    def compare(self, key: str, actual: object) -> None:
        """Check that the shapes are equal, and that no value differs by more than 1e-10 times the largest one."""
        self.seen.add(key)
        expected = self.arrays[key]
        got = actual.detach().numpy() if isinstance(actual, Tensor) else np.asarray(actual)
        assert got.shape == expected.shape, f"{key}: shape {got.shape}, recorded {expected.shape}"
        if expected.dtype.kind in "US":
            assert np.array_equal(got, expected), key
            return
        worst = float(np.abs(got - expected).max())
        # not <=, so that NaN never matches
        assert not worst > TOLERANCE * np.abs(expected).max() and np.isfinite(worst), f"{key}: off by {worst:.3g}"


class RecordedMinibatches:
    """Recorded minibatches x, y (K, B, T) in the form that training and evaluation read."""

    carries = True

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        _, self.batch_size, self.seq_length = x.shape
        self.predicted = self.seq_length

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        return self.x[k].T.contiguous().long(), self.y[k].T.contiguous().long()

    def begins(self, k: int) -> bool:
        return False

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {}


def pairs(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return a row of token ids, int64 (N,), as inputs and targets, each (N - 1, 1)."""
    return tokens[:-1, None], tokens[1:, None]


def stream_score(model: nn.Module, tokens: Tensor, **block: int) -> Score:
    """Score a stream of token ids, int64 (N,), predicting each one after the first from all those before it."""
    with evaluating(model):
        return Score.of(losses(model, *pairs(tokens), **block))
