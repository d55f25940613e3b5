"""The losses of runs, iteration by iteration, read from checkpoints or metrics files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from charrnn.checkpoints.folder import METRICS, find_newest, newest_by_run
from charrnn.data.vocabulary import VOCABULARIES
from charrnn.errors import UserError, printable, unreadable
from charrnn.files import open_regular
from charrnn.reports.inspection import inspect
from charrnn.settings.training import training_options

Axis = Literal["iterations", "epochs", "minutes"]

Floats = NDArray[np.float64]

BEGINNING = 0.05  # share of a run in which the loss falls so steeply that it would flatten the rest of the curve

MAX_SETTINGS = 3  # largest number of settings in a name


@dataclass(frozen=True)
class History:
    """The losses of a run, in nats per token. Unknown values are NaN."""

    name: str
    # the file that it was read from
    source: Path
    # (N,): training loss of iterations 1 to N
    loss: Floats
    # (K,): iterations of the validations
    validated: NDArray[np.int64]
    # (K,)
    val_loss: Floats
    # (N,): position after each iteration, in epochs
    epochs: Floats | None = None
    # (N,): training time after each iteration, without validations
    minutes: Floats | None = None
    # empty if read from a metrics file
    settings: dict[str, Any] = field(default_factory=dict)

    def along(self, axis: Axis) -> Floats:
        """Return the position of each iteration on this axis, (N,). Raises UserError if it was not recorded."""
        if axis == "iterations":
            return np.arange(1.0, len(self.loss) + 1)
        known = self.epochs if axis == "epochs" else self.minutes
        if known is None:
            raise UserError(
                f"-x {axis}: not recorded for every iteration of {self.source}. Minutes are read from "
                f"{METRICS.format('NAME')} in the same folder; -x iterations always works"
            )
        return known

    def smoothed(self, window: int = 0) -> tuple[Floats, int]:
        """Return the running mean of the training loss, (N,), and its window; window 0 means a hundredth of the run."""
        window = window or max(1, len(self.loss) // 100)
        known = np.isfinite(self.loss)
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, self.loss, 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        middle = np.arange(len(self.loss))
        first, last = np.maximum(0, middle - (window - 1) // 2), np.minimum(len(self.loss), middle + window // 2 + 1)
        with np.errstate(invalid="ignore"):  # no finite loss in the window: the mean is NaN
            return (sums[last] - sums[first]) / (counts[last] - counts[first]), window


def read(paths: Sequence[Path]) -> list[History]:
    """Read checkpoints, metrics files, and all runs of folders. Raises UserError if a run has no finite loss."""
    found = [read_folder(path) if os.path.isdir(path) else [read_file(path)] for path in paths]
    histories = [history for runs in found for history in runs]
    for history in histories:
        if not np.isfinite(history.loss).any():
            raise UserError(f"{history.source} contains no finite loss, so there is no curve to draw")
    return [replace(history, name=name) for history, name in zip(histories, names(histories), strict=True)]


def read_folder(folder: Path) -> list[History]:
    """Read every run in the folder: from its newest checkpoint, or from its metrics if there is no checkpoint."""
    metrics = {name_of(path): path for path in folder.glob(METRICS.format("*"))}
    found = metrics | newest_by_run(folder)
    return [read_file(found[name]) for name in sorted(found)] or [read_checkpoint(find_newest(folder))]


def read_file(path: Path) -> History:
    return read_metrics(path) if path.suffix == ".jsonl" else read_checkpoint(path)


def read_checkpoint(path: Path) -> History:
    """Read the losses in a checkpoint, and the minutes from the metrics file in its folder if that is complete."""
    found = inspect(path)
    if not found.losses:
        raise UserError(f"{path} contains no losses, so there is no curve to draw; was it imported?")
    loss, options, epoch = floats(found.losses), found.saved.options, found.saved.epoch
    validation = {i: y for i, y in found.val_losses.items() if 0 < i <= len(loss)}
    metrics = lines(path.parent / METRICS.format(options.run_name))
    of_this_run = [line for i, line in metrics.items() if 0 < i <= len(loss) and line["loss"] == loss[i - 1]]
    complete = [line["iteration"] for line in of_this_run] == list(range(1, len(loss) + 1))
    return History(
        name=options.run_name,
        source=path,
        loss=loss,
        validated=np.array(list(validation), np.int64),
        val_loss=floats(validation.values()),
        epochs=np.arange(1.0, len(loss) + 1) * epoch / found.iteration if found.iteration and epoch else None,
        minutes=np.cumsum(floats(line["seconds"] for line in of_this_run)) / 60 if complete else None,
        settings=asdict(options) | found.saved.model_options,
    )


def read_metrics(path: Path) -> History:
    """Read a metrics file. Raises UserError if it does not begin with iteration 1 or lacks a line."""
    if not os.path.isfile(path):
        raise UserError(f"file {path} not found: charrnn train writes {METRICS.format('NAME')} next to its checkpoints")
    found = lines(path)
    if not found or list(found) != list(range(1, len(found) + 1)):
        raise UserError(f"{path} does not have the metrics of every iteration; plot the run's checkpoint instead")
    rows = list(found.values())
    validation = {i: line["val_loss"] for i, line in found.items() if "val_loss" in line}
    return History(
        name=name_of(path),
        source=path,
        loss=floats(line["loss"] for line in rows),
        validated=np.array(list(validation), np.int64),
        val_loss=floats(validation.values()),
        epochs=floats(line["epoch"] for line in rows),
        minutes=np.cumsum(floats(line["seconds"] for line in rows)) / 60,
    )


def name_of(metrics: Path) -> str:
    before, after = METRICS.split("{}")
    return metrics.name.removeprefix(before).removesuffix(after)


def lines(path: Path) -> dict[int, dict[str, Any]]:
    """Return the valid lines of a metrics file by iteration; none if the file does not exist."""
    found = {}
    try:
        with open_regular(path) as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:  # truncated when the process was killed
                    continue
                if is_whole(line):
                    found[line["iteration"]] = line
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(path, error) from None
    return found


def is_whole(line: Any) -> bool:
    """Return whether a line has every key read here, with a number or null."""
    number_or_null = (int, float, NoneType)
    return (
        isinstance(line, dict)
        and type(line.get("iteration")) is int
        and all(type(line.get(name, "")) in number_or_null for name in ("epoch", "loss", "seconds"))
        and type(line.get("val_loss")) in number_or_null
    )


def floats(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def names(histories: Sequence[History]) -> list[str]:
    """Return a short name for each run, all different: its -savefile, the settings that differ, or its own name."""
    savefiles = [history.settings.get("savefile", "") for history in histories]
    for candidates in (savefiles, different_settings(histories), *places(histories)):
        shown = [in_line(name) for name in candidates]
        if all(shown) and len(set(shown)) == len(histories):
            return shown
    return [in_line(str(history.source)) for history in histories]


def different_settings(histories: Sequence[History]) -> list[str]:
    """Return, for each run, its values of the settings that differ; [] if too many differ to make a name."""
    settings = [history.settings for history in histories]
    free = {name for name, option in training_options().items() if option.on_resume == "free"}
    shared = set.intersection(*map(set, settings)) - free - {"threads"}
    different = [name for name in settings[0] if name in shared and len({str(s[name]) for s in settings}) > 1]
    if len(different) > MAX_SETTINGS:
        return []
    return [", ".join(s[name] if name == "model" else f"{name} {s[name]}" for name in different) for s in settings]


def places(histories: Sequence[History]) -> tuple[list[str], list[str], list[str]]:
    """Return the runs' own names, their folders, and both together."""
    own = [history.name for history in histories]
    folders = [history.source.absolute().parent.name for history in histories]
    return own, folders, [f"{folder}/{name}" for folder, name in zip(folders, own, strict=True)]


def in_line(name: str) -> str:
    """Return a name, which may come from an untrusted file, as one printable line."""
    return " ".join(printable(name).split())


def labelled(histories: Sequence[History], labels: Sequence[str]) -> list[History]:
    """Rename the histories if there are labels. Raises UserError unless there is a non-empty label for each run."""
    if labels and len(labels) != len(histories):
        runs = ", ".join(history.name for history in histories)
        raise UserError(f"-label: {len(labels)} names for {len(histories)} runs; give one for each of {runs}")
    if not all(label.strip() for label in labels):
        raise UserError("-label: a name is empty; give each curve a name")
    given = [in_line(label) for label in labels]
    return [replace(h, name=name) for h, name in zip(histories, given, strict=True)] if given else list(histories)


def top(histories: Sequence[History], window: int = 0) -> float:
    """Return the upper limit of the loss axis: the highest loss of any run after its beginning."""
    highest = []
    for history in histories:
        start = BEGINNING * len(history.loss)
        loss = history.smoothed(window)[0]
        later = np.append(history.val_loss[history.validated > start], loss[int(start) :])
        known = later[np.isfinite(later)]
        highest.append(known.max() if len(known) else loss[np.isfinite(loss)].max())
    return float(max(highest))


def unit(histories: Sequence[History]) -> str:
    """Return the unit of the losses: character, word, or token if the runs differ."""
    levels = {history.settings.get("level", "char") for history in histories}
    vocabulary = VOCABULARIES.get(levels.pop()) if len(levels) == 1 else None
    return vocabulary.unit if vocabulary else "token"
