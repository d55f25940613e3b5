"""What runs went through: their losses, iteration by iteration, read from checkpoints or from files of metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from charrnn.checkpoints.folder import METRICS, OF_RUN, find_newest, written
from charrnn.errors import UserError, printable
from charrnn.reports.inspection import inspect
from charrnn.settings.training import HARMLESS

Axis = Literal["iterations", "epochs", "minutes"]


Numbers = NDArray[np.float64]


BEGINNING = 0.05  # the part of a run in which its losses fall so steeply that they would flatten all the rest


FEW = 3  # settings that a name may consist of


@dataclass(frozen=True)
class History:
    """The losses of a run in nats, with NaN for a number that it does not know.

    loss: (N,), of iterations 1 to N; epochs, minutes: (N,), where the run was after each of them, None where unknown.
    minutes are those spent on training, without validations. val_loss: (K,), after the iterations ``validated``.
    source: the file it comes from; settings: those of the run, as far as the file tells.
    """

    name: str
    source: Path
    loss: Numbers
    validated: NDArray[np.int64]
    val_loss: Numbers
    epochs: Numbers | None = None
    minutes: Numbers | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def along(self, axis: Axis) -> Numbers:
        """Where on this axis each iteration is: (N,). Raises UserError where the run does not know."""
        if axis == "iterations":
            return np.arange(1.0, len(self.loss) + 1)
        known = self.epochs if axis == "epochs" else self.minutes
        if known is None:
            raise UserError(
                f"-x {axis}: not known for every iteration of {self.source}; minutes are in the file "
                f"{METRICS.format('NAME')} beside it. -x iterations is always known"
            )
        return known

    def smoothed(self, window: int = 0) -> tuple[Numbers, int]:
        """The training loss as a running mean, (N,), and of how many iterations; 0 means a hundredth of the run."""
        window = window or max(1, len(self.loss) // 100)
        known = np.isfinite(self.loss)
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, self.loss, 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        middle = np.arange(len(self.loss))
        first, last = np.maximum(0, middle - (window - 1) // 2), np.minimum(len(self.loss), middle + window // 2 + 1)
        with np.errstate(invalid="ignore"):  # where nothing is known the mean is NaN
            return (sums[last] - sums[first]) / (counts[last] - counts[first]), window


def read(paths: Sequence[Path]) -> list[History]:
    """The histories of checkpoints, of files of metrics, and of all runs in folders. Raises UserError."""
    found = [of_folder(path) if os.path.isdir(path) else [of_file(path)] for path in paths]
    histories = [history for runs in found for history in runs]
    for history in histories:
        if not np.isfinite(history.loss).any():
            raise UserError(f"{history.source} holds no loss that is a number, so there is no curve to draw")
    return [replace(history, name=name) for history, name in zip(histories, names(histories), strict=True)]


def of_folder(folder: Path) -> list[History]:
    """Every run that saved into the folder, from its newest checkpoint, or its metrics where that is all there is."""
    runs: dict[str, list[Path]] = {}
    for path in folder.glob("lm_*.pt"):
        if match := OF_RUN.fullmatch(path.name):
            runs.setdefault(match[1], []).append(path)
    newest = {name: max(files, key=written) for name, files in runs.items()}
    metrics = {path.name[3:-14]: path for path in folder.glob(METRICS.format("*"))}
    found = metrics | newest
    return [of_file(found[name]) for name in sorted(found)] or [of_checkpoint(find_newest(folder))]


def of_file(path: Path) -> History:
    return of_metrics(path) if path.suffix == ".jsonl" else of_checkpoint(path)


def of_checkpoint(path: Path) -> History:
    """From the losses in a checkpoint; the minutes from the file of metrics beside it, where that is whole."""
    found = inspect(path)
    if not found["losses"]["train"]:
        raise UserError(f"{path} holds no losses, so there is no curve to draw: was it imported?")
    loss = numbers(found["losses"]["train"])
    validation = {i: y for i, y in found["losses"]["validation"].items() if 0 < i <= len(loss)}
    settings = found["settings"] | found["model_options"]
    name = settings["savefile"] or settings["model"]
    iterations = np.arange(1.0, len(loss) + 1)
    epochs = iterations * found["epoch"] / found["iteration"] if found["iteration"] and found["epoch"] else None
    beside = path.parent / METRICS.format(name)
    told = [line for i, line in lines(beside).items() if 0 < i <= len(loss) and line["loss"] == loss[i - 1]]
    whole = [line["iteration"] for line in told] == list(range(1, len(loss) + 1))
    minutes = np.cumsum(numbers(line["seconds"] for line in told)) / 60 if whole else None
    validated = np.array(list(validation), np.int64)
    return History(name, path, loss, validated, numbers(validation.values()), epochs, minutes, settings)


def of_metrics(path: Path) -> History:
    """From a file of metrics alone. Raises UserError where it has no whole line."""
    if not os.path.isfile(path):
        raise UserError(
            f"there is no file {path}: charrnn train writes {METRICS.format('NAME')} beside its checkpoints"
        )
    found = lines(path)
    if not found or list(found) != list(range(1, len(found) + 1)):
        raise UserError(f"{path} is not the metrics of a run from its first iteration on: name its checkpoint instead")
    rows = list(found.values())
    validated = {i: line["val_loss"] for i, line in found.items() if "val_loss" in line}
    return History(
        path.name.removeprefix("lm_").removesuffix("_metrics.jsonl"),
        path,
        numbers(line["loss"] for line in rows),
        np.array(list(validated), np.int64),
        numbers(validated.values()),
        numbers(line["epoch"] for line in rows),
        np.cumsum(numbers(line["seconds"] for line in rows)) / 60,
    )


def lines(path: Path) -> dict[int, dict[str, Any]]:
    """The lines of a file of metrics by iteration, those that are whole; none where there is no such file."""
    found = {}
    try:
        with path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:  # cut short, when the process was killed
                    continue
                if is_whole(line):
                    found[line["iteration"]] = line
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return found


def is_whole(line: Any) -> bool:
    """Whether a line has all that is read from it, as numbers or null."""
    number_or_null = (int, float, NoneType)
    return (
        isinstance(line, dict)
        and type(line.get("iteration")) is int
        and all(type(line.get(name, "")) in number_or_null for name in ("epoch", "loss", "seconds"))
        and type(line.get("val_loss")) in number_or_null
    )


def numbers(values: Iterable[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def names(histories: Sequence[History]) -> list[str]:
    """What tells the runs apart, in few words: names that were given to them, settings, their files or folders."""
    settings = [history.settings for history in histories]
    shared = set.intersection(*map(set, settings)) - HARMLESS - {"threads"}
    different = [name for name in settings[0] if name in shared and len({str(s[name]) for s in settings}) > 1]
    told = [", ".join(s[name] if name == "model" else f"{name} {s[name]}" for name in different) for s in settings]
    candidates = [
        [s.get("savefile", "") for s in settings],
        told if len(different) <= FEW else [],
        [history.name for history in histories],
        [history.source.absolute().parent.name for history in histories],
        [f"{history.source.absolute().parent.name}/{history.name}" for history in histories],
    ]
    for words in candidates:
        shown = [in_line(name) for name in words]
        if all(shown) and len(set(shown)) == len(histories):
            return shown
    return [in_line(str(history.source)) for history in histories]


def in_line(name: str) -> str:
    """A name as it can stand in one line, of a picture or a terminal: it may come from a stranger's file."""
    return " ".join(printable(name).split())


def labelled(histories: Sequence[History], labels: Sequence[str]) -> list[History]:
    """The histories under other names, if any are given. Raises UserError where there is not one word for each."""
    if labels and len(labels) != len(histories):
        runs = ", ".join(history.name for history in histories)
        raise UserError(f"-label: {len(labels)} names for {len(histories)} runs: give one for each of {runs}")
    if not all(label.strip() for label in labels):
        raise UserError("-label: a name is empty, and a curve without one is told from no other: give it a word")
    given = [in_line(label) for label in labels]
    return [replace(h, name=name) for h, name in zip(histories, given, strict=True)] if given else list(histories)


def top(histories: Sequence[History], window: int = 0) -> float:
    """The highest loss worth showing: what stands above it is only met at the beginning of a run."""
    highest = []
    for history in histories:
        start = BEGINNING * len(history.loss)
        loss = history.smoothed(window)[0]
        later = np.append(history.val_loss[history.validated > start], loss[int(start) :])
        known = later[np.isfinite(later)]
        highest.append(known.max() if len(known) else loss[np.isfinite(loss)].max())
    return float(max(highest))


def unit(histories: Sequence[History]) -> str:
    """What the losses are per: a character, a word, or a token where runs differ in it."""
    levels = {history.settings.get("level", "char") for history in histories}
    return {"char": "character", "word": "word"}.get(levels.pop(), "token") if len(levels) == 1 else "token"
