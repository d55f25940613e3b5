"""Converts checkpoints of the original programs, char-rnn and grid-lstm, which run on Torch7.

Both programs compute the gates of an LSTM in the order i, f, o, g; torch has i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn import registry
from charrnn.checkpoints import t7
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.compute import Report
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.option import Encoding, Option
from charrnn.settings.training import TrainingOptions, training_options

Array = NDArray[Any]

INDISPENSABLE = ("model", "rnn_size", "num_layers", "dropout")

IGNORED = {"task"}  # grid-lstm has an option of this name with a different meaning


@dataclass(frozen=True)
class Source:
    """The original tensors that make up one of ours."""

    names: tuple[str, ...]
    # whether to reorder the gates into torch's order
    reorder: bool = False

    def tensor(self, originals: Mapping[str, Array]) -> Array:
        joined = np.concatenate([originals[name] for name in self.names])
        return ifog_to_ifgo(joined) if self.reorder else joined


def ifog_to_ifgo(rows: Array) -> Array:
    """Reorder gates along the first axis from i, f, o, g to i, f, g, o. The function is its own inverse."""
    i, f, o, g = np.split(rows, 4)
    return np.concatenate([i, f, g, o])


def layout(model: str, n_layers: int, tied: bool) -> dict[str, Source]:
    """Return the source of each tensor in our state_dict.

    The original tensors are named after their place and role: layer1.i2h.weight, layer1.reset.h2h.bias,
    layer2.time.t2h.weight, layer2.depth.d2h.weight (depth.d2h.weight if shared by the layers),
    embedding.weight, decoder.bias.
    """
    sources = {"embedding.weight": Source(("embedding.weight",))} if model == "grid_lstm" else {}
    for kind in ("weight", "bias"):
        sources[f"decoder.{kind}"] = Source((f"decoder.{kind}",))
        for k in range(n_layers):
            for name, names in layer(model, kind, k, tied).items():
                sources[name] = Source(names, reorder=GATES[model] == 4)
    return sources


def layer(model: str, kind: str, k: int, tied: bool) -> dict[str, tuple[str, ...]]:
    """Return the names of the original weights or biases that make up each of ours in layer k."""
    old = f"layer{k + 1}"
    if model == "grid_lstm":
        depth, new = ("depth", "depth.0") if tied else (f"{old}.depth", f"depth.{k}")
        return {
            f"time.{k}.{kind}_ih_l0": (f"{old}.time.d2h.{kind}",),
            f"time.{k}.{kind}_hh_l0": (f"{old}.time.t2h.{kind}",),
            f"{new}.{kind}_ih": (f"{depth}.d2h.{kind}",),
            f"{new}.{kind}_hh": (f"{depth}.t2h.{kind}",),
        }
    parts = [f"{old}.{gate}" for gate in ("reset", "update", "candidate")] if model == "gru" else [old]
    return {
        f"{model}.{kind}_ih_l{k}": tuple(f"{part}.i2h.{kind}" for part in parts),
        f"{model}.{kind}_hh_l{k}": tuple(f"{part}.h2h.{kind}" for part in parts),
    }


GATES = {"lstm": 4, "gru": 1, "rnn": 1, "grid_lstm": 4}  # per module


def modules(model: str, n_layers: int) -> Iterator[str]:
    """Yield the modules with weights in the order of nngraph's topological sort."""
    roles = {
        "lstm": ("i2h", "h2h"),
        "rnn": ("i2h", "h2h"),
        "gru": ("update.i2h", "update.h2h", "candidate.i2h", "reset.i2h", "reset.h2h", "candidate.h2h"),
        "grid_lstm": ("time.t2h", "time.d2h", "depth.t2h", "depth.d2h"),
    }
    names = [f"layer{k + 1}.{role}" for k in range(n_layers) for role in roles[model]]
    if model == "grid_lstm":
        names.insert(1, "embedding")
        for k in range(1, n_layers):  # time.t2h does not depend on the layer below and comes before its depth
            t2h = names.index(f"layer{k + 1}.time.t2h")
            names.insert(t2h - 2, names.pop(t2h))
    yield from names
    yield "decoder"


def load(path: Path, report: Report) -> Checkpoint:
    """Read a checkpoint from a .t7 file, with its precision, settings and vocabulary.

    ``report`` gets a line for each setting that cannot be kept. The original programs save no optimizer, so training
    can start from the checkpoint with init_from but the run cannot be resumed. Raises UserError unless the file is a
    complete checkpoint of lstm, gru, rnn or grid_lstm, saved on a CPU. Executes nothing from the file.
    """
    root = t7.load(path)
    try:
        return _checkpoint(root, path.stat().st_size, report)
    except t7.Unreadable as error:
        raise UserError(f"{path} {error}") from None


def _checkpoint(root: Any, size: int, report: Report) -> Checkpoint:
    """Convert the content of a file of ``size`` bytes. Raises t7.Unreadable."""
    opt = _get(root, "opt", dict)
    settings = _settings(opt, report)
    model, n_layers = settings["model"], settings["num_layers"]
    own = {name: option.default for name, option in registry.find(model).options.items()}
    tied = model == "grid_lstm" and bool(_get(opt, "tie_weights", float))
    if model == "grid_lstm":
        own["tie_weights"] = tied
    codes, settings["encoding"] = _codes(_get(root, "vocab", dict))
    tensors = _tensors(_get(root, "protos", dict), model, n_layers, settings["rnn_size"], len(codes))
    if tied:
        _tie(tensors, n_layers)
    if sum(array.nbytes for array in tensors.values()) > size:
        raise t7.Unreadable("is damaged: its weights overlap")
    _sort(tensors, codes)
    sources = layout(model, n_layers, tied)
    weights = {name: torch.from_numpy(source.tensor(tensors)) for name, source in sources.items()}
    settings["precision"] = str(next(iter(tensors.values())).dtype)
    return Checkpoint(
        options=TrainingOptions(**settings),
        model_options=own,
        vocabulary=Vocabulary(tuple(sorted(codes)), settings["encoding"]),
        weights=weights,
        epoch=_get(root, "epoch", float),
        val_loss=_get(root, "val_loss", float),
    )


def _get(table: Any, key: str, kind: type) -> Any:
    value = table.get(key.encode()) if isinstance(table, dict) else None
    if not isinstance(value, kind):
        raise t7.Unreadable(f"is not a checkpoint of char-rnn or grid-lstm: its {key} is missing")
    return value


def _settings(opt: t7.Table, report: Report) -> dict[str, Any]:
    """Return the values of our settings. The programs' options have our names and, with one exception, our meanings."""
    model = _get(opt, "model", bytes).decode("utf-8", "replace")
    if model not in GATES:
        raise t7.Unreadable(f"has a model {model}; only {', '.join(GATES)} can be imported")
    for name in ("rnn_size", "num_layers"):
        _get(opt, name, float)
    wanted = {name: option for name, option in training_options().items() if name not in IGNORED}
    settings = {name: _setting(opt, name, option, report) for name, option in wanted.items()}
    if {"/", "\0"} & set(settings["savefile"]):  # it becomes part of a file name
        settings["savefile"] = ""
    return settings


def _setting(opt: t7.Table, name: str, option: Option, report: Report) -> Any:
    value = opt.get(name.encode(), option.default)
    try:
        return option.convert(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
    except UserError as error:
        if name in INDISPENSABLE:
            raise t7.Unreadable(f"cannot be imported: {error}") from None
        report(f"{error}; imported as {option.default}")
        return option.default


def _codes(vocab: t7.Table) -> tuple[list[int], Encoding]:
    """Return the code of each character in the order of the file's ids, and the encoding.

    char-rnn's own vocabularies consist of bytes. Those of forks that read UTF-8 consist of whole characters.
    """
    entries = sorted(vocab, key=lambda entry: vocab[entry] if isinstance(vocab[entry], float) else 0.0)
    numbered = [vocab[entry] for entry in entries] == list(range(1, len(entries) + 1))
    if not entries or not numbered or not all(isinstance(entry, bytes) for entry in entries):
        raise t7.Unreadable("is damaged: its vocabulary does not number the characters from 1")
    if all(len(entry) == 1 for entry in entries):
        codes = [entry[0] for entry in entries]
        return codes, "utf-8" if max(codes) < 128 else "bytes"
    try:
        return [ord(entry.decode()) for entry in entries], "utf-8"
    except (UnicodeDecodeError, TypeError):
        raise t7.Unreadable("has a vocabulary of words; only models of bytes or characters can be imported") from None


def _tensors(protos: t7.Table, model: str, n_layers: int, rnn_size: int, vocabulary_size: int) -> dict[str, Array]:
    """Return the weights and biases by name. Raises t7.Unreadable if one has the wrong shape."""
    listed = _get(getattr(protos.get(b"rnn"), "content", None), "modules", dict)
    found = [listed.get(str(i + 1.0)) for i in range(len(listed))]
    found = [m for m in found if isinstance(m, t7.Object) and m.name in ("nn.Linear", "nn.LookupTable")]
    names = list(modules(model, n_layers)) if n_layers <= len(found) else []
    if len(names) != len(found):
        raise t7.Unreadable(
            f"does not have the modules of a {model} of {n_layers} layers; was it written by a modified char-rnn?"
        )
    tensors = {}
    for name, module in zip(names, found, strict=True):
        rows = vocabulary_size if name in ("decoder", "embedding") else GATES[model] * rnn_size
        columns = vocabulary_size if name.startswith("layer1.") and name.endswith("i2h") else rnn_size
        shapes = {"weight": (rows, columns)} | ({} if name == "embedding" else {"bias": (rows,)})
        for kind, shape in shapes.items():
            array = tensors[f"{name}.{kind}"] = _get(module.content, kind, np.ndarray)
            if array.shape != shape:
                raise t7.Unreadable(f"is damaged: {name}.{kind} has the shape {array.shape} instead of {shape}")
    if {array.dtype.name for array in tensors.values()} not in ({"float32"}, {"float64"}):
        raise t7.Unreadable("is damaged: its weights are not all float or all double")
    return tensors


def _tie(tensors: dict[str, Array], n_layers: int) -> None:
    """Replace the layers' depth LSTMs, which must be equal, by a single one."""
    for part in ("t2h.weight", "t2h.bias", "d2h.weight", "d2h.bias"):
        first, *others = [tensors.pop(f"layer{k + 1}.depth.{part}") for k in range(n_layers)]
        if not all(np.array_equal(first, other) for other in others):
            raise t7.Unreadable("is damaged: tie_weights is 1, but the layers' depth weights differ")
        tensors[f"depth.{part}"] = first


def _sort(tensors: dict[str, Array], codes: list[int]) -> None:
    """Sort the rows or columns that belong to characters into the ascending order of our vocabularies."""
    order = np.argsort(codes)
    for name, array in tensors.items():
        if name.startswith(("decoder.", "embedding.")):
            tensors[name] = array[order]
        elif name.startswith("layer1.") and name.endswith("i2h.weight"):
            tensors[name] = array[:, order]
