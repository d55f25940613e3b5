"""Metrics for programs to read: a JSON file in the run's folder, and TensorBoard events."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from charrnn.checkpoints.folder import RunFolder
from charrnn.compute import Report
from charrnn.errors import UserError
from charrnn.files import open_regular
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Record

FIELDS = (
    "iteration", "epoch", "learning_rate", "loss", "penalty", "norm_before", "grad_norm", "param_norm", "seconds",
)  # fmt: skip


class Sink(Protocol):
    """A destination for records."""

    def begin(self, losses: Sequence[float]) -> None:
        """Continue after the iterations that had these losses; discard later ones, which the run will repeat."""

    def add(self, record: Record) -> None: ...

    def flush(self) -> None:
        """Force everything to disk."""

    def close(self) -> None: ...


def check(options: TrainingOptions) -> None:
    """Raise UserError if the settings ask for TensorBoard events and TensorBoard is not installed."""
    if options.log_dir and not find_spec("tensorboard"):
        raise UserError(
            "-log_dir needs TensorBoard, which is not installed: pip install 'char-rnn-torch[tensorboard]', "
            "or leave out -log_dir"
        )


def sinks(options: TrainingOptions, folder: RunFolder, report: Report) -> list[Sink]:
    """Return the sinks that the settings ask for."""
    found: list[Sink] = [MetricsFile(folder.metrics, report)]
    if options.log_dir:
        found.append(Events(Path(options.log_dir) / options.run_name))
    return found


class MetricsFile:
    """One line of JSON per iteration, with the fields of Record, and with the results of a validation if there was one.

    Each line is written immediately, in full or not at all. NaN and infinity, which JSON does not have, become null.
    If the disk is full, lines are lost; this is reported once, and the run continues.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report
        self.file: IO[bytes] | None = None
        self.complained = False

    def begin(self, losses: Sequence[float]) -> None:
        """Truncate the file after the lines of these iterations, and continue there."""
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open_regular(self.path, "ab", buffering=0)
            self.file.truncate(end_of(self.path, losses))
        except OSError as error:
            self._complain(error)

    def add(self, record: Record) -> None:
        if not self.file:
            return
        line = json.dumps(as_dict(record)).encode() + b"\n"
        start = self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(start)
            self._complain(error)

    def flush(self) -> None:
        if self.file:
            try:
                os.fsync(self.file.fileno())
            except OSError as error:
                self._complain(error)

    def close(self) -> None:
        if self.file:
            try:
                self.file.close()
            except OSError as error:  # some network file systems write only now
                self._complain(error)
            self.file = None

    def _complain(self, error: OSError) -> None:
        if not self.complained:
            self.complained = True
            self.report(f"cannot write {self.path}: {error.strerror}; training continues without those lines")


class Events:
    """Writes TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, losses: Sequence[float]) -> None:
        """Continue after these iterations; TensorBoard ignores what older files say about later ones."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.close()
        try:
            self.writer = SummaryWriter(str(self.folder), purge_step=len(losses) + 1)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; name another -log_dir") from None

    def add(self, record: Record) -> None:
        numbers = {"loss/train": record.loss, "loss/validation": record.val_loss, "rate": record.learning_rate}
        numbers |= {"norm/gradient": record.grad_norm, "norm/parameters": record.param_norm}
        numbers |= {f"validation/{name}": share for name, share in record.measures.items()}
        for name, number in numbers.items():
            if number is not None:
                self.writer.add_scalar(name, number, record.iteration)

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
            self.writer = None


def as_dict(record: Record) -> dict[str, float | None]:
    """Return the record as values that JSON can hold: NaN and infinity become None."""
    numbers = {name: getattr(record, name) for name in FIELDS}
    if record.val_loss is not None:
        numbers |= {"val_loss": record.val_loss, **record.measures}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def end_of(path: Path, losses: Sequence[float]) -> int:
    """Return the byte offset at which the lines of these iterations end in a metrics file.

    They end before the first line that is truncated or has a different loss: it comes from another run of that name.
    """
    end = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                found = json.loads(line)
                if not line.endswith(b"\n") or losses[found["iteration"] - 1] != found["loss"]:
                    break
            except (ValueError, LookupError, TypeError):  # also a later iteration
                break
            end += len(line)
    return end
