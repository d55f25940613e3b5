"""Reading the recordings of the original programs, and keeping count of what was compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-10

Arrays = Mapping[str, np.ndarray]


class Recording:
    """The arrays of one file. ``given`` reads an input, ``compare`` checks a result; both are remembered."""

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
        """Equal in shape, and to 1e-10 of the array's largest entry (or of 1, where that is larger)."""
        self.seen.add(key)
        expected = self.arrays[key]
        got = actual.detach().numpy() if isinstance(actual, Tensor) else np.asarray(actual)
        assert got.shape == expected.shape, f"{key}: shape {got.shape}, recorded {expected.shape}"
        if expected.dtype.kind in "US":
            assert np.array_equal(got, expected), key
            return
        scale = max(1.0, float(np.abs(expected).max())) if expected.size else 1.0
        worst = float(np.abs(got - expected).max()) if expected.size else 0.0
        assert worst <= TOLERANCE * scale, f"{key}: off by {worst:.3g}"


class RecordedMinibatches:
    """Recorded minibatches x, y (K, B, T) as the training loop and the evaluation read them."""

    carries = True

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        _, self.batch_size, self.seq_length = x.shape

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        return self.x[k].T.contiguous().long(), self.y[k].T.contiguous().long()


Part = tuple[tuple[str, ...], Callable[[list[np.ndarray]], np.ndarray]]


def ifog_to_ifgo(rows: np.ndarray) -> np.ndarray:
    """Torch7's gate order i, f, o, g into torch's i, f, g, o along the first axis. It is its own inverse."""
    i, f, o, g = np.split(rows, 4)
    return np.concatenate([i, f, g, o])


def stacked(*parts: str) -> Part:
    """A tensor of ours that holds these recorded tensors one above the other."""
    return parts, np.concatenate


def gates(part: str) -> Part:
    """A tensor of ours that holds this recorded tensor, its gates in torch's order."""
    return (part,), lambda arrays: ifog_to_ifgo(arrays[0])


def layout(model: str, n_layers: int, tied: bool) -> dict[str, Part]:
    """For each tensor of our state_dict: the recorded tensors that it holds, and how to join them."""
    tensors = {"embedding.weight": stacked("embedding.weight")} if model == "grid_lstm" else {}
    for kind in ("weight", "bias"):
        tensors[f"decoder.{kind}"] = stacked(f"decoder.{kind}")
        for k in range(n_layers):
            tensors |= LAYERS[model](kind, k, tied)
    return tensors


def _lstm(kind: str, k: int, tied: bool) -> dict[str, Part]:
    old = f"layer{k + 1}"
    return {f"lstm.{kind}_ih_l{k}": gates(f"{old}.i2h.{kind}"), f"lstm.{kind}_hh_l{k}": gates(f"{old}.h2h.{kind}")}


def _gru(kind: str, k: int, tied: bool) -> dict[str, Part]:
    names = [f"layer{k + 1}.{gate}.%s.{kind}" for gate in ("reset", "update", "candidate")]
    return {
        f"gru.{kind}_ih_l{k}": stacked(*(name % "i2h" for name in names)),
        f"gru.{kind}_hh_l{k}": stacked(*(name % "h2h" for name in names)),
    }


def _rnn(kind: str, k: int, tied: bool) -> dict[str, Part]:
    old = f"layer{k + 1}"
    return {f"rnn.{kind}_ih_l{k}": stacked(f"{old}.i2h.{kind}"), f"rnn.{kind}_hh_l{k}": stacked(f"{old}.h2h.{kind}")}


def _grid_lstm(kind: str, k: int, tied: bool) -> dict[str, Part]:
    old = f"layer{k + 1}"
    depth, new = ("depth", "depth.0") if tied else (f"{old}.depth", f"depth.{k}")
    return {
        f"time.{k}.{kind}_ih_l0": gates(f"{old}.time.d2h.{kind}"),
        f"time.{k}.{kind}_hh_l0": gates(f"{old}.time.t2h.{kind}"),
        f"{new}.{kind}_ih": gates(f"{depth}.d2h.{kind}"),
        f"{new}.{kind}_hh": gates(f"{depth}.t2h.{kind}"),
    }


LAYERS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn, "grid_lstm": _grid_lstm}
