"""A whole run in one call: ``charrnn.train``."""

from __future__ import annotations

import glob
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn import compute
from charrnn.checkpoints.folder import RunFolder, find_newest
from charrnn.compute import Report, silent
from charrnn.errors import UserError
from charrnn.training.loop import Record
from charrnn.training.run import Run, Viewer, stopping
from charrnn.training.setup import Setup, configure, prepare

Texts = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Trained:
    """The outcome of a training run."""

    # the checkpoint with the lowest validation loss; without a validation split, the newest one
    best: Path
    # the newest checkpoint, which continues the run exactly: charrnn.train(resume=trained.newest)
    newest: Path
    # the lowest validation loss, in nats per token; None without a validation split
    val_loss: float | None
    # one for each iteration of this call, except those that a rollback undid
    records: tuple[Record, ...]
    # whether Ctrl-C, or "interrupt" in a notebook, stopped the run before its end
    interrupted: bool


class Unseen:
    """A viewer that shows nothing."""

    def note(self, line: str) -> None: ...
    def show(self, record: Record) -> None: ...
    def validated(self, record: Record, saved: str, sample: str) -> None: ...
    def ended(self, lines: Sequence[str]) -> None: ...


def train(
    texts: Texts | None,
    settings: Mapping[str, Any],
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_record: Callable[[Record], object] | None = None,
    shown: Callable[[Setup], AbstractContextManager[Viewer]] | None = None,
    report: Report = silent,
) -> Trained:
    """Train as ``charrnn train`` does.

    ``settings`` are those of the command and of the model, by name. ``shown`` provides the display, and ``report``
    receives the lines that come before it. Raises UserError.
    """
    given = {name: plain(value) for name, value in settings.items() if value is not None}
    if texts is not None:
        if both := given.keys() & {"data_dir", "input"}:
            raise UserError(f"the text is given twice, as the first argument and as {both.pop()}: give it only once")
        given |= named(texts)
    resumed = None if resume is None else find_newest(Path(resume))
    configuration = configure(given, str(config) if config else None, str(resumed) if resumed else None)
    with compute.unchanged(configuration.options.gpuid):
        setup = prepare(configuration, report)
        report(setup.summary())
        viewing = shown(setup) if shown else nullcontext(Unseen())
        with RunFolder.of(setup.options).alone(), setup.enough_memory(), viewing as viewer:
            return followed(Run(setup, viewer.note), viewer, resumed, on_record or (lambda record: None))


def followed(run: Run, viewer: Viewer, resumed: Path | None, on_record: Callable[[Record], object]) -> Trained:
    """Train to the end or until Ctrl-C, and save."""
    records: list[Record] = []
    with stopping(run, interrupts(), viewer) as signals:
        for record in run.follow(viewer):
            del records[record.iteration - run.first - 1 :]  # after a rollback, iterations are repeated
            records.append(record)
            on_record(record)
        if signals:
            last = run.save_last()
            viewer.note(f"stopped; saved to {last}. To continue: charrnn.train(resume={str(last)!r})")
        else:
            viewer.ended(run.finish().lines(command=False))
    newest = run.newest or resumed
    assert newest  # a run that is not resumed has at least one iteration
    best = run.folder.best()
    return Trained(
        best=run.folder.path / best.name if best else newest,
        newest=newest,
        val_loss=best.loss if best else None,
        records=tuple(records),
        interrupted=bool(signals),
    )


def plain(value: Any) -> Any:
    """Return a path as text, and anything else unchanged."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def named(texts: Texts) -> dict[str, Any]:
    """Return the setting, input or data_dir, that names a text file, a pattern, several files or a folder.

    Raises UserError if ``texts`` is a text itself, or if the list is empty.
    """
    if isinstance(texts, (str, os.PathLike)):
        name = os.fspath(texts)
        if "\n" in name:
            raise UserError(
                "train takes the name of a text file or a folder, not the text itself: write the text to a file"
            )
        is_file = os.path.isfile(name) or (glob.has_magic(name) and not os.path.isdir(name))
        return {"input": (name,)} if is_file else {"data_dir": name}
    if not texts:
        raise UserError("no text file given: name at least one")
    return {"input": tuple(map(os.fspath, texts))}


def interrupts() -> list[signal.Signals]:
    """Return SIGINT if it would raise KeyboardInterrupt here: in the main thread, with Python's own handler."""
    main = threading.current_thread() is threading.main_thread()
    return [signal.SIGINT] if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
