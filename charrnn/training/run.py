"""A training run: trains a set-up, keeps checkpoints and metrics, goes back to a checkpoint if the loss breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import nan
from pathlib import Path

import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import RunFolder
from charrnn.compute import Report
from charrnn.data.addition import Problems
from charrnn.sampling.sampler import sample
from charrnn.training.advice import Summary, advice
from charrnn.training.loop import Diverged, Record
from charrnn.training.metrics import sinks
from charrnn.training.setup import Setup

ROLLBACKS = 3  # with -on_nan rollback: a run that breaks more often needs other settings


class Run:
    """Trains a set-up: ``for record in run.records()``. What to save, and when, is up to the caller."""

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
        # where a broken loss leads back to
        self.last_good = self.checkpoint() if self.options.on_nan == "rollback" else None

    def records(self) -> Iterator[Record]:
        """Train, one record per iteration. After a rollback the iterations since the last save come again."""
        try:
            while True:
                for sink in self.sinks:
                    sink.begin(self.training.losses)
                try:
                    for record in self.training.run():
                        for sink in self.sinks:
                            sink.add(record)
                        yield record
                    return
                except Diverged as error:
                    if self.last_good is None or self.training.rollbacks == ROLLBACKS:
                        raise
                    self._roll_back(self.last_good)
                    self.report(f"{error}. Back to iteration {self.training.iteration}, at half the learning rate")
        finally:
            for sink in self.sinks:
                sink.close()

    def _roll_back(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.weights)
        self.training.load_state_dict(checkpoint.training)
        self.training.rollbacks += 1
        self.last_good = self.checkpoint()

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
        )

    def save(self) -> Path:
        """Save the state, just validated, under char-rnn's file name; delete older checkpoints as -keep says."""
        checkpoint = self.checkpoint()
        loss = nan if checkpoint.val_loss is None else checkpoint.val_loss
        dropped = self.folder.add(checkpoint.name, loss, self.options.keep)
        checkpoint.training |= self.folder.state_dict()
        path = self._write(checkpoint, self.folder.path / checkpoint.name)
        for name in dropped:
            (self.folder.path / name).unlink(missing_ok=True)
        return path

    def save_last(self) -> Path:
        """Save the state in the one file that each such save replaces."""
        return self._write(self.checkpoint(), self.folder.last)

    def save_is_due(self) -> bool:
        """Whether -save_every or -save_minutes asks for ``save_last`` now."""
        every, minutes = self.options.save_every, self.options.save_minutes
        by_count = every and self.training.iteration % every == 0
        by_clock = minutes and time.monotonic() - self.saved_at > 60 * minutes
        return bool(by_count or by_clock)

    def _write(self, checkpoint: Checkpoint, path: Path) -> Path:
        self.saved_at = time.monotonic()
        for sink in self.sinks:
            sink.flush()
        checkpoint.save(path)
        if self.options.on_nan == "rollback":
            self.last_good = checkpoint
        return path

    def advice(self) -> str:
        """Return what the losses so far suggest, or ''."""
        return advice(self.training.losses, self.training.val_losses, self.options.dropout)

    def new_advice(self) -> str:
        """Return the advice if it is not the same as at the call before, or ''."""
        before, self.advised = self.advised, self.advice()
        return self.advised if self.advised != before else ""

    def sample(self) -> str:
        """Return ``sample_length`` tokens of text by the model; for addition, problems with its answers."""
        length, vocabulary, val = self.options.sample_length, self.setup.vocabulary, self.training.val
        if isinstance(val, Problems):
            return val.show(self.model, max(1, length // (val.seq_length + 2)))
        prime = "" if vocabulary.unknown_tokens("\n") else "\n"
        return "".join(sample(self.model, vocabulary, prime, length, seed=self.options.seed))

    def finish(self) -> Summary:
        """Save the end of the run unless that has just been validated and saved, and sum up."""
        training = self.training
        trained = training.iteration - self.first
        seconds = time.monotonic() - self.began
        last = self.save_last() if trained and training.iteration not in training.val_losses else None
        if training.stopped_early:
            ended = f"stopped early, after {training.stalled} validations without a new best"
        elif trained:
            ended = f"done, {training.epoch:.2f} epochs"
        else:
            ended = f"nothing left to train: -max_epochs {self.options.max_epochs:g} is reached; raise it to continue"
        best, advice = self.folder.best(), self.advice()
        saved = self.folder.path / best.name if best else last
        return Summary(ended, trained, seconds, saved, best.loss if best else None, advice, type(self.setup.vocabulary))
