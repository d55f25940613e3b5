"""The folder of a run: the names of its files, its best and newest checkpoint, what -keep deletes, and the lock."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

from charrnn.errors import UserError, unreadable
from charrnn.files import locked
from charrnn.settings.training import TrainingOptions

METRICS = "lm_{}_metrics.jsonl"
LAST = "lm_{}_last.pt"
LOCK = ".lm_{}.lock"
# char-rnn's name of a validated checkpoint: the run's name, the epoch, the validation loss
VALIDATED = re.compile(r"lm_(.+?)_epoch\d+\.\d+_(\d+\.\d+|nan|inf)\.pt")
ROLLING = re.compile(r"lm_(.+?)_last\.pt")


def validated_name(run: str, epoch: float, loss: float) -> str:
    return f"lm_{run}_epoch{epoch:.2f}_{loss:.4f}.pt"


class Kept(NamedTuple):
    """A validated checkpoint of a run."""

    name: str
    # validation loss in nats per token, with all its digits
    loss: float


class RunFolder:
    """The files of one run in a folder that other runs may share."""

    def __init__(self, path: Path, run: str, kept: Iterable[Kept] = ()) -> None:
        self.path = path
        self.run = run
        # validated checkpoints that have not been deleted, oldest first
        self.kept = list(kept)

    @classmethod
    def of(cls, options: TrainingOptions, kept: Iterable[Kept] = ()) -> RunFolder:
        """Return the folder that these settings name."""
        return cls(Path(options.checkpoint_dir), options.run_name, kept)

    @property
    def last(self) -> Path:
        """The checkpoint that each save between validations replaces."""
        return self.path / LAST.format(self.run)

    @property
    def metrics(self) -> Path:
        return self.path / METRICS.format(self.run)

    @property
    def lock(self) -> str:
        """The name of the lock file."""
        return LOCK.format(self.run)

    def add(self, name: str, loss: float, keep: int) -> list[str]:
        """Add a validated checkpoint, and drop all but the newest ``keep`` and the best; with 0, drop none.

        Return the names of those that were dropped. Their files may be deleted once the new one is saved.
        """
        self.kept = [kept for kept in self.kept if kept.name != name] + [Kept(name, loss)]
        best, latest = best_of(self.kept), self.kept[-keep:] if keep else self.kept
        dropped = [kept.name for kept in self.kept if kept not in latest and kept != best]
        self.kept = [kept for kept in self.kept if kept.name not in dropped]
        return dropped

    def state_dict(self) -> dict[str, Any]:
        """Return the validated checkpoints as plain values, which ``kept_in`` reads."""
        return {"kept": [kept.name for kept in self.kept], "kept_losses": [kept.loss for kept in self.kept]}

    def best(self) -> Kept | None:
        """Return the validated checkpoint with the lowest loss whose file exists."""
        return best_of([kept for kept in self.kept if (self.path / kept.name).exists()])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Create the folder, and hold the run's lock while the block lasts.

        Raises UserError if the folder cannot be written, or if another run is writing files of the same name there.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._check_names()
                free = stack.enter_context(locked(self.path / self.lock))
            except OSError as error:
                long = error.errno == errno.ENAMETOOLONG
                advice = "choose a shorter -savefile" if long else "name another -checkpoint_dir"
                raise UserError(f"cannot save to {self.path}: {error.strerror}; {advice}") from None
            if not free:
                raise UserError(
                    f"another training is saving lm_{self.run}_... to {self.path}: "
                    "give this one its own -checkpoint_dir or -savefile"
                )
            yield

    def _check_names(self) -> None:
        """Raise OSError if a checkpoint's name is too long, or UserError if something other than a file has it."""
        with suppress(FileNotFoundError):
            (self.path / validated_name(self.run, 1e6, 1e3)).lstat()
        for path in [self.path / self.lock, *self.path.glob("lm_*.pt")]:
            match = VALIDATED.fullmatch(path.name) or ROLLING.fullmatch(path.name)
            if (not match or match[1] == self.run) and path.exists() and not path.is_file():
                raise UserError(f"{path} is not a regular file: remove it, or name another -checkpoint_dir")


def best_of(kept: Iterable[Kept]) -> Kept | None:
    """Return the checkpoint with the lowest loss; of equal ones, the latest."""
    return min(reversed(list(kept)), key=lambda each: inf if isnan(each.loss) else each.loss, default=None)


def kept_in(training: dict[str, Any]) -> list[Kept]:
    """Read the validated checkpoints from the training state in a checkpoint.

    Earlier versions saved only the names, with four decimals of the loss. Raises KeyError, TypeError or ValueError if
    the state is damaged. Pruning deletes these files, so only names of checkpoints are allowed.
    """
    names = training["kept"]
    found = [VALIDATED.fullmatch(name) for name in names]
    losses = training.get("kept_losses", [float(match[2]) for match in found if match])
    if any("/" in name for name in names) or not all(found):
        raise ValueError("it lists files that are not checkpoints")
    if not all(type(loss) is float for loss in losses):
        raise ValueError("it lists validation losses that are not numbers")
    return [Kept(name, loss) for name, loss in zip(names, losses, strict=True)]


def checkpoints(folder: Path, pattern: str = "lm_*.pt") -> list[Path]:
    """Return the files in a folder with such names. Skips folders, FIFOs and devices."""
    return [file for file in folder.glob(pattern) if os.path.isfile(file)]


def find_best(path: Path) -> Path:
    """Return the file itself, or the checkpoint with the lowest validation loss in a folder.

    File names have four decimals of the loss; only checkpoints that are equal in these are opened. Among equal losses,
    or if no checkpoint has been validated, the newest is returned. Raises UserError if there is no checkpoint.
    """
    if not _is(Path.is_dir, path):
        return _existing(path)
    named = [(match[2], file) for file in checkpoints(path, "*.pt") if (match := VALIDATED.fullmatch(file.name))]
    losses = [float(loss) for loss, _ in named if isfinite(float(loss))]
    equal = [file for loss, file in named if losses and float(loss) == min(losses)]
    if len(equal) > 1:
        exact = {file: _loss(file) for file in equal}
        equal = [file for file in equal if exact[file] == min(exact.values())]
    return newest(equal) if equal else find_newest(path)


def find_newest(path: Path) -> Path:
    """Return the file itself, or the newest checkpoint in a folder. Raises UserError if there is none."""
    if not _is(Path.is_dir, path):
        return _existing(path)
    files = checkpoints(path)
    if not files:
        raise UserError(f"the folder {path} has no checkpoints (lm_....pt): charrnn train creates them")
    return newest(files)


def newest_by_run(path: Path) -> dict[str, Path]:
    """Return the newest checkpoint of every run in a folder, by the run's name."""
    runs: dict[str, list[Path]] = {}
    for file in checkpoints(path):
        if match := VALIDATED.fullmatch(file.name) or ROLLING.fullmatch(file.name):
            runs.setdefault(match[1], []).append(file)
    return {run: newest(files) for run, files in runs.items()}


def newest(files: Iterable[Path]) -> Path:
    """Return the newest of these checkpoints: of the run that saved last, the one with the highest iteration.

    After a rollback, a run repeats iterations, and any of these is newer than those before the rollback. All this is
    read from the files, so copies keep their order. The file system's times decide only if the files do not.
    """
    files = list(files)
    if len(files) == 1:
        return files[0]
    ages = {file: _age(file) for file in files}
    runs: dict[str, list[_Age]] = {}
    for age in ages.values():
        runs.setdefault(age.run, []).append(age)
    latest = max(runs.values(), key=lambda run: max((age.written, age.modified) for age in run))
    return next(file for file, age in ages.items() if age == max(latest))


def is_newest(file: Path) -> bool:
    """Return whether a checkpoint is the newest of its run in its folder."""
    others = [other for other in checkpoints(file.parent) if other != file]
    if not others:
        return True
    own = _age(file)
    return all(age <= own for age in map(_age, others) if age.run == own.run)


class _Age(NamedTuple):
    """The age of a checkpoint, as a sort key. Missing or damaged values are '' and 0.

    Earlier versions saved only the iteration.
    """

    # identity; checkpoints without one count as a single run
    run: str
    rollbacks: int
    iteration: int
    # nanoseconds since 1970, from the file and from the file system
    written: int
    modified: int


def _age(file: Path) -> _Age:
    content = _outline(file)
    training = content.get("training")
    training = training if isinstance(training, dict) else {}
    numbers = (training.get("rollbacks"), training.get("iteration"), content.get("written"))
    rollbacks, iteration, written = (number if type(number) is int else 0 for number in numbers)
    run = content.get("run_id")
    try:
        modified = file.stat().st_mtime_ns
    except OSError:  # a training has just deleted it
        modified = 0
    return _Age(run if isinstance(run, str) else "", rollbacks, iteration, written, modified)


def _loss(file: Path) -> float:
    """Return the validation loss in a checkpoint, or 0 if it has none; loading it will report the error."""
    loss = _outline(file).get("val_loss")
    return loss if type(loss) is float else 0.0


def _outline(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint without the values of its tensors; empty if it is damaged or not a file.

    Raises UserError if a file cannot be read: an older one in its place would silently lose what was trained since.
    """
    from charrnn.checkpoints import archive  # loads torch, which completing a file name does not need

    try:
        content = archive.read(file, values=False)
    except archive.Malformed:
        return {}
    except OSError as error:
        if file.is_file():
            raise unreadable(file, error) from None
        return {}
    return content if isinstance(content, dict) else {}


def _existing(path: Path) -> Path:
    if not _is(Path.is_file, path):
        if _is(Path.exists, path):
            raise UserError(f"{path} is not a regular file: name a checkpoint (lm_....pt) or the folder of a run")
        raise UserError(f"no checkpoint found at {path}: charrnn train creates them")
    return path


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError as error:  # a name too long, a folder without permission
        raise unreadable(path, error) from None
