"""Checkpoints of the original programs, char-rnn and grid-lstm, which run on Torch7: what is in them, made ours.

Here too stands which of their tensors go where in our models. Both programs have the gates in the order i, f, o, g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn import registry
from charrnn.checkpoints import t7
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.option import Encoding
from charrnn.settings.training import TrainingOptions, training_options

Array = NDArray[Any]


Part = tuple[tuple[str, ...], Callable[[list[Array]], Array]]


Report = Callable[[str], None]


INDISPENSABLE = ("model", "rnn_size", "num_layers", "dropout")


OTHERWISE = {"task"}  # grid-lstm's own name for what it always reads, characters


def ifog_to_ifgo(rows: Array) -> Array:
    """Torch7's gate order i, f, o, g into torch's i, f, g, o along the first axis. It is its own inverse."""
    i, f, o, g = np.split(rows, 4)
    return np.concatenate([i, f, g, o])


def stacked(*parts: str) -> Part:
    """A tensor of ours that holds these tensors of theirs one above the other."""
    return parts, np.concatenate


def gates(part: str) -> Part:
    """A tensor of ours that holds this tensor of theirs, its gates in torch's order."""
    return (part,), lambda arrays: ifog_to_ifgo(arrays[0])


def layout(model: str, n_layers: int, tied: bool) -> dict[str, Part]:
    """For each tensor of our state_dict: the tensors of theirs that it holds, and how to join them.

    Theirs are called after their place and duty: layer1.i2h.weight, layer1.reset.h2h.bias, layer2.time.t2h.weight,
    layer2.depth.d2h.weight (depth.d2h.weight where the layers share it), embedding.weight, decoder.bias.
    """
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


GATES = {"lstm": 4, "gru": 1, "rnn": 1, "grid_lstm": 4}  # that one module computes


def modules(model: str, n_layers: int) -> Iterator[str]:
    """The modules with weights in the order in which nngraph, having sorted its graph, lists them."""
    duties = {
        "lstm": ("i2h", "h2h"),
        "rnn": ("i2h", "h2h"),
        "gru": ("update.i2h", "update.h2h", "candidate.i2h", "reset.i2h", "reset.h2h", "candidate.h2h"),
        "grid_lstm": ("time.t2h", "time.d2h", "depth.t2h", "depth.d2h"),
    }
    names = [f"layer{k + 1}.{duty}" for k in range(n_layers) for duty in duties[model]]
    if model == "grid_lstm":
        names.insert(1, "embedding")
        for k in range(1, n_layers):  # a layer's time.t2h needs nothing of the layer below, and comes before its depth
            t2h = names.index(f"layer{k + 1}.time.t2h")
            names.insert(t2h - 2, names.pop(t2h))
    yield from names
    yield "decoder"


def load(path: Path, report: Report) -> Checkpoint:
    """The checkpoint in a .t7 file, with the precision, the settings and the vocabulary that it has.

    ``report`` gets a line for each setting that cannot be kept. char-rnn saves no optimizer: training can begin from
    this checkpoint with init_from, but the old run cannot be resumed. Raises UserError where the file is anything but a
    whole checkpoint of lstm, gru, rnn or grid_lstm, saved on a CPU. Runs nothing of the file.
    """
    root = t7.load(path)
    try:
        return _checkpoint(root, path.stat().st_size, report)
    except t7.Unreadable as error:
        raise UserError(f"{path} {error}") from None


def _checkpoint(root: Any, size: int, report: Report) -> Checkpoint:
    """Raises t7.Unreadable. size: bytes in the file."""
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
    weights = {
        name: torch.from_numpy(join([tensors[part] for part in parts]))
        for name, (parts, join) in layout(model, n_layers, tied).items()
    }
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
    """Those of the program's options that we have, too: they have the same names and, but for one, meanings."""
    settings = {}
    for name, option in training_options().items():
        if name in OTHERWISE:
            continue
        value = opt.get(name.encode(), option.default)
        try:
            settings[name] = option.convert(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
        except UserError as error:
            if name in INDISPENSABLE:
                raise t7.Unreadable(f"cannot be imported: its {error}") from None
            report(f"the old run's {error}; {option.default} is put in its place")
    if {"/", "\0"} & set(settings["savefile"]):  # it becomes a part of a file's name
        settings["savefile"] = ""
    for name in ("rnn_size", "num_layers"):
        _get(opt, name, float)
    if _get(opt, "model", bytes).decode("utf-8", "replace") not in LAYERS:
        raise t7.Unreadable(f"has a model {settings['model']}: only {', '.join(LAYERS)} can be imported")
    return settings


def _codes(vocab: t7.Table) -> tuple[list[int], Encoding]:
    """The code of each character in the order of the file's numbers, and the encoding they are codes of.

    char-rnn's own vocabularies are bytes. Those of its descendants that read UTF-8 have whole characters.
    """
    entries = sorted(vocab, key=lambda entry: vocab[entry] if isinstance(vocab[entry], float) else 0.0)
    numbered = [vocab[entry] for entry in entries] == list(range(1, len(entries) + 1))
    if not entries or not numbered or not all(isinstance(entry, bytes) for entry in entries):
        raise t7.Unreadable("is damaged: its vocabulary does not number characters from 1")
    if all(len(entry) == 1 for entry in entries):
        codes = [entry[0] for entry in entries]
        return codes, "utf-8" if max(codes) < 128 else "bytes"
    try:
        return [ord(entry.decode()) for entry in entries], "utf-8"
    except (UnicodeDecodeError, TypeError):
        raise t7.Unreadable("has a vocabulary of words: only models of bytes or characters can be imported") from None


def _tensors(protos: t7.Table, model: str, n_layers: int, rnn_size: int, vocabulary_size: int) -> dict[str, Array]:
    """The weights and biases by name, each of the shape that it must have."""
    listed = _get(getattr(protos.get(b"rnn"), "content", None), "modules", dict)
    found = [listed.get(i + 1) for i in range(len(listed))]
    found = [m for m in found if isinstance(m, t7.Object) and m.name in ("nn.Linear", "nn.LookupTable")]
    names = list(modules(model, n_layers)) if n_layers <= len(found) else []
    if len(names) != len(found):
        raise t7.Unreadable(f"has not the modules of a {model} of {n_layers} layers: is it from a changed char-rnn?")
    tensors = {}
    for name, module in zip(names, found, strict=True):
        rows = vocabulary_size if name in ("decoder", "embedding") else GATES[model] * rnn_size
        columns = vocabulary_size if name.startswith("layer1.") and name.endswith("i2h") else rnn_size
        shapes = {"weight": (rows, columns)} | ({} if name == "embedding" else {"bias": (rows,)})
        for kind, shape in shapes.items():
            array = tensors[f"{name}.{kind}"] = _get(module.content, kind, np.ndarray)
            if array.shape != shape:
                raise t7.Unreadable(f"is damaged: {name}.{kind} is of shape {array.shape}, and {shape} is needed")
    if {array.dtype.name for array in tensors.values()} not in ({"float32"}, {"float64"}):
        raise t7.Unreadable("is damaged: its weights are not all of one precision, float or double")
    return tensors


def _tie(tensors: dict[str, Array], n_layers: int) -> None:
    """Put one depth LSTM in the place of one for each layer, which must be equal."""
    for part in ("t2h.weight", "t2h.bias", "d2h.weight", "d2h.bias"):
        first, *others = [tensors.pop(f"layer{k + 1}.depth.{part}") for k in range(n_layers)]
        if not all(np.array_equal(first, other) for other in others):
            raise t7.Unreadable("is damaged: tie_weights is 1, but the layers' depth weights differ")
        tensors[f"depth.{part}"] = first


def _sort(tensors: dict[str, Array], codes: list[int]) -> None:
    """Put whatever has a row or a column for each character into the ascending order of our vocabularies."""
    order = np.argsort(codes)
    for name, array in tensors.items():
        if name.startswith(("decoder.", "embedding.")):
            tensors[name] = array[order]
        elif name.startswith("layer1.") and name.endswith("i2h.weight"):
            tensors[name] = array[:, order]
