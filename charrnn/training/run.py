"""A training run: train, save checkpoints and metrics, and roll back if the loss becomes NaN or explodes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import nan
from pathlib import Path
from typing import Any, Protocol

import torch

from charrnn.checkpoints.checkpoint import Checkpoint, try_saving
from charrnn.checkpoints.folder import RunFolder
from charrnn.compute import Report
from charrnn.data.addition import Problems
from charrnn.data.encode import TextChanged
from charrnn.errors import UserError
from charrnn.sampling.sampler import sample
from charrnn.training.advice import Summary, advice
from charrnn.training.loop import ROLLBACKS, Diverged, Record
from charrnn.training.metrics import sinks
from charrnn.training.setup import Setup


class Viewer(Protocol):
    """Displays a run."""

    def note(self, line: str) -> None: ...
    def show(self, record: Record) -> None: ...
    def validated(self, record: Record, saved: str, sample: str) -> None: ...
    def ended(self, lines: Sequence[str]) -> None: ...


class Run:
    """Trains from a Setup: ``for record in run.follow(viewer)``, and then ``run.finish()``."""

    def __init__(self, setup: Setup, report: Report) -> None:
        self.setup = setup
        self.options = setup.options
        self.model = setup.model
        self.training = setup.training
        self.report = report
        self.folder = RunFolder.of(self.options, setup.kept)
        self.sinks = sinks(self.options, self.folder, report)
        text = setup.text
        # how often each token occurs, in the order of the vocabulary
        self.counts = torch.tensor([text.counts.get(code, 0) for code in text.vocabulary.codes])
        self.first = self.training.iteration
        self.began = self.saved_at = time.monotonic()
        self.advised = ""
        # the checkpoint saved last by this process
        self.newest: Path | None = None
        # with -on_nan rollback: the state of the last regular save, to return to if the loss becomes NaN or explodes
        self.good: dict[str, Any] | None = setup.good or self._good(self.checkpoint())

    def records(self) -> Iterator[Record]:
        """Train, yielding one record per iteration. A rollback repeats the iterations since the last regular save."""
        try:
            self._begin_sinks()
            try_saving(self.folder.last)  # before hours of training
            while True:
                try:
                    for record in self.training.run():
                        for sink in self.sinks:
                            sink.add(record)
                        yield record
                    if self.training.iteration not in self.training.val_losses:
                        self.training.prove()
                    return
                except Diverged as error:
                    self._roll_back(error)
        finally:
            for sink in self.sinks:
                sink.close()

    def follow(self, viewer: Viewer) -> Iterator[Record]:
        """Train to the end or until ``stop``. Before each record is yielded, save and display as the settings say.

        Saves after each validation, and between validations as -save_every and -save_minutes say. If another program
        changes the file of token ids, saves and raises UserError.
        """
        try:
            yield from self._shown(viewer)
        except TextChanged as error:
            if self.training.iteration == self.first:
                raise
            saved = self.newest if self.training.iteration in self.training.val_losses else self.save_last()
            raise UserError(f"{error}. The run so far is saved: continue it with -resume {saved}") from None

    def _shown(self, viewer: Viewer) -> Iterator[Record]:
        for record in self.records():
            viewer.show(record)
            if record.val_loss is not None:
                saved = self.save()
                viewer.validated(record, str(saved), self.sample() if self.options.sample_length else "")
                if advice := self.new_advice():
                    viewer.note(advice)
            elif self.save_is_due(record):
                try:
                    self.save_last(regular=self.training.at_regular_save)
                except Diverged as error:
                    self._roll_back(error)
                except UserError as error:  # a full disk may have room again at the next save
                    viewer.note(f"{error}; training continues")
            yield record

    def _begin_sinks(self) -> None:
        for sink in self.sinks:
            sink.begin(self.training.losses)

    def _good(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Return the part of a checkpoint that a rollback restores; None without -on_nan rollback."""
        if self.options.on_nan != "rollback":
            return None
        return {"weights": checkpoint.weights, "training": dict(checkpoint.training)}

    def _roll_back(self, error: Diverged) -> None:
        """Return to the last regular save, at half the learning rate. Raises the error if that is not allowed."""
        if self.good is None or self.training.rollbacks == ROLLBACKS:
            raise error
        self.model.load_state_dict(self.good["weights"])
        self.training.load_state_dict(self.good["training"])
        self.training.rollbacks += 1
        self.good = self._good(self.checkpoint())
        self._begin_sinks()
        self.report(f"{error}. Back to iteration {self.training.iteration}, at half the learning rate")

    def stop(self) -> None:
        """End after the current iteration."""
        self.training.stop()

    def checkpoint(self) -> Checkpoint:
        """Return the current state of the run, as a copy that later training does not change."""
        return Checkpoint(
            options=self.options,
            model_options=self.setup.model_options,
            vocabulary=self.setup.vocabulary,
            weights=self.training.weights(),
            epoch=self.training.epoch,
            val_loss=self.training.val_losses.get(self.training.iteration),
            training=self.training.state_dict()
            | {"texts": self.setup.text.fingerprint, "counts": self.counts}
            | self.folder.state_dict(),
            run_id=self.setup.run_id,
        )

    def save(self) -> Path:
        """Save the state after a validation, under char-rnn's file name. Delete older checkpoints as -keep says."""
        checkpoint = self.checkpoint()
        loss = nan if checkpoint.val_loss is None else checkpoint.val_loss
        dropped = self.folder.add(checkpoint.name, loss, self.options.keep)
        checkpoint.training |= self.folder.state_dict()
        self.good = self._good(checkpoint)
        path = self._write(checkpoint, self.folder.path / checkpoint.name)
        self._delete(dropped)
        return path

    def save_last(self, regular: bool = False) -> Path:
        """Save the state as lm_NAME_last.pt, replacing the previous one.

        A ``regular`` save is one that an uninterrupted run also makes at this iteration: rollbacks return to it. Any
        other save also contains the state of the last regular one. Raises Diverged, and saves nothing, if the next
        loss is NaN or has exploded.
        """
        self.training.prove()
        checkpoint = self.checkpoint()
        if regular:
            self.good = self._good(checkpoint)
        elif self.good and self.good["training"]["iteration"] != self.training.iteration:
            checkpoint.training["good"] = self.good
        return self._write(checkpoint, self.folder.last)

    def save_is_due(self, record: Record) -> bool:
        """Return whether -save_every or -save_minutes asks for ``save_last`` after this record."""
        if record.iteration < self.training.iteration:
            return False  # the weights already belong to a later iteration
        minutes = self.options.save_minutes
        by_clock = bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes
        return self.training.at_regular_save or by_clock

    def _write(self, checkpoint: Checkpoint, path: Path) -> Path:
        self.saved_at = time.monotonic()
        for sink in self.sinks:
            sink.flush()
        checkpoint.save(path)
        self.newest = path
        return path

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.folder.path / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self.report(f"cannot delete {path}, which -keep no longer needs: {error.strerror}; delete it yourself")

    def advice(self) -> str:
        """Return what the losses so far suggest, or ''."""
        return advice(self.training.losses, self.training.val_losses, self.options.dropout)

    def new_advice(self) -> str:
        """Return the advice if it has changed since the last call, or ''."""
        before, self.advised = self.advised, self.advice()
        return self.advised if self.advised != before else ""

    def sample(self) -> str:
        """Return ``sample_length`` tokens written by the model; for addition, problems with the model's answers."""
        length, vocabulary, val = self.options.sample_length, self.setup.vocabulary, self.training.val
        if isinstance(val, Problems):
            return val.show(self.model, max(1, length // (val.seq_length + 2)))
        prime = "" if vocabulary.unknown_tokens("\n") else "\n"
        return "".join(sample(self.model, vocabulary, prime, length, seed=self.options.seed))

    def finish(self) -> Summary:
        """Save the final state, unless a validation has just saved it, and return a summary."""
        training = self.training
        trained = training.iteration - self.first
        seconds = time.monotonic() - self.began
        last = self.save_last() if trained and training.iteration not in training.val_losses else None
        if training.stopped_early:
            ended = f"stopped early, after {training.stalled} validations without a new best"
        elif trained:
            ended = f"done, {training.epoch:.2f} epochs"
        else:
            ended = (
                f"nothing left to train: -max_epochs {self.options.max_epochs:g} has been reached; raise it to continue"
            )
        best, advice = self.folder.best(), self.advice()
        saved = self.folder.path / best.name if best else last
        return Summary(ended, trained, seconds, saved, best.loss if best else None, advice, type(self.setup.vocabulary))


@contextmanager
def stopping(run: Run, signals: Iterable[signal.Signals], viewer: Viewer) -> Iterator[list[int]]:
    """Let the first of these signals stop the run after the current iteration, and let the second act at once.

    Yields a list to which the first signal will be appended. The previous handlers are restored at the end.
    """
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        run.stop()
        for signum in before:
            if signal.getsignal(signum) is stop:
                signal.signal(signum, signal.SIG_DFL if signum != signal.SIGINT else signal.default_int_handler)
        with suppress(OSError, RuntimeError):  # the terminal is gone, or was being written to just now
            viewer.note("stopping after this iteration (press Ctrl-C again to stop at once)")

    before = {signum: signal.getsignal(signum) for signum in signals}
    try:
        for signum in before:
            signal.signal(signum, stop)
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: not set from Python
