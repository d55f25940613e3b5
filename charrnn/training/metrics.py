"""What a run leaves for programs to read: a file of metrics beside the checkpoints, and TensorBoard's events."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.training.loop import Record

FIELDS = (
    "iteration", "epoch", "learning_rate", "loss", "penalty", "norm_before", "grad_norm", "param_norm", "seconds",
)  # fmt: skip


Report = Callable[[str], None]


class Metrics(Protocol):
    """A place for records. begin: after a history of these losses; keep: make sure that nothing is lost."""

    def begin(self, losses: Sequence[float]) -> None: ...
    def add(self, record: Record) -> None: ...
    def keep(self) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """One JSON object a line for each iteration, as it was trained: the fields of Record, with what a validation found.

    Every line is written whole, at once. Numbers that JSON has not are null. A disk that takes no more costs
    lines, about which ``report`` hears once, not the run.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report
        self.file: IO[bytes] | None = None
        self.complained = False

    def begin(self, losses: Sequence[float]) -> None:
        """Keep the lines of the iterations that led here, each known by its loss, and go on after them.

        Lines of iterations that a resumed or rolled-back run does anew are dropped, as are those of another run
        of the same name.
        """
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_others(losses)
            self.file = self.path.open("ab", buffering=0)
        except OSError as error:
            self._complain(error)

    def _drop_others(self, losses: Sequence[float]) -> None:
        with replacing(self.path) as file, suppress(FileNotFoundError), self.path.open("rb") as lines:
            file.writelines(line for line in lines if is_of(line, losses))

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

    def keep(self) -> None:
        """Bring what was written to the disk, as is due before a checkpoint that it led to."""
        if self.file:
            try:
                os.fsync(self.file.fileno())
            except OSError as error:
                self._complain(error)

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None

    def _complain(self, error: OSError) -> None:
        if not self.complained:
            self.complained = True
            self.report(f"cannot write {self.path}: {error.strerror}; training goes on without those lines")


class Events:
    """The same for TensorBoard, in its own format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        if not find_spec("tensorboard"):
            raise UserError(
                "-log_dir needs TensorBoard, which is not installed: pip install 'char-rnn-torch[tensorboard]', "
                "or leave it out"
            )

    def begin(self, losses: Sequence[float]) -> None:
        """Go on after that many iterations; TensorBoard forgets what older files say of later ones."""
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

    def keep(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
            self.writer = None


def as_dict(record: Record) -> dict[str, float | None]:
    """The record as JSON can have it."""
    numbers = {name: getattr(record, name) for name in FIELDS}
    if record.val_loss is not None:
        numbers |= {"val_loss": record.val_loss, **record.measures}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def is_of(line: bytes, losses: Sequence[float]) -> bool:
    """Whether a line is whole and tells of one of the iterations that had these losses."""
    try:
        match json.loads(line):
            case {"iteration": int(iteration), "loss": float(loss)} if line.endswith(b"\n"):
                return 0 < iteration <= len(losses) and losses[iteration - 1] == loss
    except ValueError:  # cut short, when the process was killed
        return False
    return False
