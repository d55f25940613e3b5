"""A training run from its settings: the text, the model, the loop, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from charrnn import compute as precision
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import NAME
from charrnn.compute import choose_device, keep_freed_memory
from charrnn.data.addition import Problems
from charrnn.data.datasets import catalogue as datasets
from charrnn.data.minibatches import Minibatches
from charrnn.data.text import Text, find_files, open_chosen, split_problems, split_text, with_seq_length
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError
from charrnn.sampling.sampler import sample
from charrnn.settings.resolve import Configuration
from charrnn.settings.training import TrainingOptions
from charrnn.training import memory
from charrnn.training import run as tasks
from charrnn.training.advice import Summary, advice
from charrnn.training.loop import Diverged, Record, Training
from charrnn.training.metrics import Events, Metrics, MetricsFile
from charrnn.training.tuning import tune

Report = Callable[[str], None]


ROLLBACKS = 3  # with -on_nan rollback: a run that breaks more often needs other settings


class Run:
    """Everything that ``charrnn train`` works on. Raises UserError before anything is written.

    keep: whether what is worked out about the text may be written down for the next time.
    """

    def __init__(self, configuration: Configuration, report: Report, keep: bool = True) -> None:
        options = configuration.options
        notes = list(configuration.notes)  # reported once nothing can go wrong any more: a mistake is one line
        device = choose_device(options.gpuid, notes.append, options.precision)
        precision.prepare(options.precision, device, notes.append)
        keep_freed_memory()
        if options.threads:
            torch.set_num_threads(options.threads)
        # kept in the checkpoint: sums come out the same only with the same kernels and number of threads
        options = replace(options, threads=torch.get_num_threads(), kernels="torch")
        self.options = options = replace(options, input=tuple(map(str, find_files(options.input))))
        self.model_options = configuration.model_options
        self.report = report
        self.folder = Path(options.checkpoint_dir)
        size = (options.rnn_size, options.num_layers, options.dropout)
        model_file = configuration.model
        model_file.check(*size, **self.model_options)
        for saved in (configuration.start, configuration.resume):
            if saved:
                saved.check(model_file, **self.model_options)
        memory.check(model_file.skeleton(1, *size, **self.model_options), options, device)

        self.text = self._open_text(report, keep, configuration.start or configuration.resume)
        self.vocabulary = self.text.vocabulary
        self.counts = torch.tensor([self.text.counts.get(code, 0) for code in self.vocabulary.codes])
        self.task = tasks.of(options)
        splits = self.task.split(self.text, options)
        self.options = options = with_seq_length(options, splits["train"])

        self.skeleton = model_file.skeleton(len(self.vocabulary), *size, **self.model_options)
        torch.manual_seed(options.seed)
        with self.enough_memory():
            self.model = model_file.create(len(self.vocabulary), *size, **self.model_options)
            self.model.to(device, precision.weights_dtype(options.precision))
            if configuration.start:
                self._start_from(configuration.start)
            if device.type == "cpu":
                asked = configuration.options
                options = replace(options, threads=asked.threads, kernels=asked.kernels)
                self.options = options = tune(self.model, splits["train"], options, report)
            self.training = Training(self.model, splits["train"], splits.get("val"), options)
        self.kept: list[str] = []
        self.saved_at = time.monotonic()
        self.began = time.monotonic()
        self.metrics: list[Metrics] = [MetricsFile(self.folder / f"lm_{self.name}_metrics.jsonl", self.note)]
        if options.log_dir:
            self.metrics.append(Events(Path(options.log_dir) / self.name))
        if configuration.resume:
            self._resume(configuration.resume)
        self.first = self.training.iteration
        self.good = self.checkpoint() if options.on_nan == "rollback" else None
        for line in notes:
            report(line)

    def enough_memory(self) -> AbstractContextManager[None]:
        """While it lasts, memory that runs out is a UserError with what this run needs."""
        return memory.explained(self.skeleton, len(self.vocabulary), self.options)

    def _open_text(self, report: Report, keep: bool, before: Checkpoint | None) -> Text:
        known = self._known_words(before.vocabulary) if before else None
        folder = Path(self.options.data_dir)
        name = None if self.options.input else datasets.for_folder(folder)
        if not name or (folder / "input.txt").exists() or (folder / "train.txt").exists():
            return open_chosen(self.options, report, known, keep)
        if keep:
            datasets.prepare(name, folder, report)
            return open_chosen(self.options, report, known)
        with TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as passing:
            datasets.prepare(name, passing, report)
            return open_chosen(replace(self.options, data_dir=passing), report, known, keep=False)

    def _known_words(self, vocabulary: Vocabulary) -> Words | None:
        """The words of a run that this one goes on from: no two texts have the same ones in the same order."""
        if self.options.level != vocabulary.level or not isinstance(vocabulary, Words):
            return None
        return vocabulary.with_unk(self.options.unk) if self.options.unk else vocabulary

    @property
    def text_name(self) -> str:
        """What messages call the text."""
        return "the text of -input" if self.options.input else f"the text in {self.options.data_dir}"

    def _start_from(self, start: Checkpoint) -> None:
        """Take over a checkpoint's weights; its characters must be this text's, as in char-rnn."""
        if difference := self.vocabulary.difference(start.vocabulary, self.text_name, "the checkpoint"):
            raise UserError(
                f"{difference}: use a text with the same {start.vocabulary.units}, and the checkpoint's -level and "
                "-encoding"
            )
        start.restore(self.model)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go on with a run: the text must be the very same, byte for byte."""
        if not checkpoint.training:
            raise UserError(
                "the checkpoint has no optimizer to go on with, as charrnn import makes it: "
                "begin a new run from it with -init_from"
            )
        texts = checkpoint.training.get("texts")
        if texts != self.text.fingerprint or checkpoint.vocabulary != self.vocabulary:
            raise UserError(
                f"{self.text_name} is not the one that this run was trained on: "
                "put it back, or begin a new run with -init_from"
            )
        try:
            self._restore(checkpoint)
            self.kept = list(checkpoint.training["kept"])
            # these are deleted one day: no checkpoint may name anything but its like beside it
            if any("/" in name or not NAME.fullmatch(name) for name in self.kept):
                raise ValueError("it lists files that are no checkpoints")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"the checkpoint is damaged: it cannot be resumed ({error})") from None

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def name(self) -> str:
        """What distinguishes this run's files from those of others in the same folder."""
        return self.options.savefile or self.options.model

    def note(self, line: str) -> None:
        """A line for the user, wherever such lines go now."""
        self.report(line)

    def records(self) -> Iterator[Record]:
        """Train, one record an iteration. After a rollback the iterations since the last save come again."""
        try:
            yield from self._records()
        finally:
            for metrics in self.metrics:
                metrics.close()

    def _records(self) -> Iterator[Record]:
        while True:
            for metrics in self.metrics:
                metrics.begin(self.training.losses)
            try:
                for record in self.training.run():
                    for metrics in self.metrics:
                        metrics.add(record)
                    yield record
                return
            except Diverged as error:
                if self.good is None or self.training.rollbacks == ROLLBACKS:
                    raise
                self._restore(self.good)
                self.training.rollbacks += 1
                self.good = self.checkpoint()
                self.report(f"{error}. Back to iteration {self.training.iteration}, at half the rate")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Put back weights, optimizer and all else as they were then."""
        self.model.load_state_dict(checkpoint.weights)
        self.training.load_state_dict(checkpoint.training)

    def checkpoint(self) -> Checkpoint:
        """The run as it is now, apart from what training changes from here on."""
        return Checkpoint(
            options=self.options,
            model_options=self.model_options,
            vocabulary=self.vocabulary,
            weights=copied(self.model.state_dict()),
            epoch=self.training.epoch,
            val_loss=self.training.val_losses.get(self.training.iteration),
            training=copied(self.training.state_dict())
            | {"texts": self.text.fingerprint, "counts": self.counts, "kept": list(self.kept)},
        )

    def save(self) -> Path:
        """Keep the run as it is now, just validated, under char-rnn's file name; prune as -keep says."""
        checkpoint = self.checkpoint()
        self.kept = [name for name in self.kept if name != checkpoint.name] + [checkpoint.name]
        old = self._to_prune()
        self.kept = [name for name in self.kept if name not in old]
        checkpoint.training["kept"] = list(self.kept)
        path = self._write(checkpoint, checkpoint.name)
        for name in old:
            (self.folder / name).unlink(missing_ok=True)
        return path

    def save_last(self) -> Path:
        """Keep the run as it is now in the one file that each such save replaces."""
        return self._write(self.checkpoint(), f"lm_{self.name}_last.pt")

    def save_is_due(self) -> bool:
        """Whether the settings ask for a save of the last state now."""
        options = self.options
        by_count = options.save_every and self.training.iteration % options.save_every == 0
        by_clock = options.save_minutes and time.monotonic() - self.saved_at > 60 * options.save_minutes
        return bool(by_count or by_clock)

    def _write(self, checkpoint: Checkpoint, name: str) -> Path:
        self.saved_at = time.monotonic()
        for metrics in self.metrics:
            metrics.keep()
        path = checkpoint.save(self.folder / name)
        if self.options.on_nan == "rollback":
            self.good = checkpoint
        return path

    def _to_prune(self) -> list[str]:
        """The validated checkpoints of this run that -keep no longer wants: never the best, never the latest."""
        if not self.options.keep:
            return []
        best = min(self.kept, key=loss_in)
        return [name for name in self.kept[: -self.options.keep] if name != best]

    def advice(self) -> str:
        """What the losses so far suggest, or ''."""
        return advice(self.training.losses, self.training.val_losses, self.options.dropout)

    def finish(self) -> Summary:
        """Keep the end of the run, if that was not just validated and so kept, and sum up."""
        training, options = self.training, self.options
        trained = training.iteration - self.first
        seconds = time.monotonic() - self.began
        last = self.save_last() if trained and training.iteration not in training.val_losses else None
        there = [name for name in self.kept if (self.folder / name).exists()]
        best = min(reversed(there), key=loss_in, default=None)
        if training.stopped_early:
            ended = f"stopped early, after {training.stalled} validations without a new best"
        elif trained:
            ended = f"done, {training.epoch:.2f} epochs"
        else:
            ended = f"nothing left to train, -max_epochs {options.max_epochs:g} is reached and a higher one goes on"
        val_loss = self._loss_of(best) if best else None
        kept = self.folder / best if best else last
        return Summary(ended, trained, seconds, kept, val_loss, self.advice(), type(self.vocabulary))

    def _loss_of(self, name: str) -> float:
        """The validation loss of a checkpoint, of which its name has but four decimals."""
        rounded = loss_in(name)
        return next((loss for loss in self.training.val_losses.values() if f"{loss:.4f}" == f"{rounded:.4f}"), rounded)

    def sample(self) -> str:
        """A few lines that the model writes now."""
        return self.task.show(self.model, self.vocabulary, self.options, self.training.val)


def loss_in(name: str) -> float:
    """The validation loss in a checkpoint's file name."""
    return float(match[1]) if (match := NAME.fullmatch(name)) else inf


def copied(value: Any, copies: dict[Any, Any] | None = None) -> Any:
    """A copy on the CPU of tensors in dicts and lists, which later training leaves alone.

    Tensors that are one, as tied weights are, stay one. copies: those made so far.
    """
    copies = {} if copies is None else copies
    match value:
        case torch.Tensor():
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if same not in copies or not value.numel():
                copies[same] = value.detach().to("cpu", copy=True)
            return copies[same]
        case dict():
            return {key: copied(item, copies) for key, item in value.items()}
        case list():
            return [copied(item, copies) for item in value]
    return value


@dataclass(frozen=True)
class Task:
    """split: the minibatches of train and of what else there is. show: what the model writes now, for people to see."""

    split: Callable[[Text, TrainingOptions], Mapping[str, Minibatches]]
    show: Callable[[nn.Module, Vocabulary, TrainingOptions, Minibatches | None], str]


def of(options: TrainingOptions) -> Task:
    """The task that the settings name."""
    return TASKS[options.task]


def show_text(model: nn.Module, vocabulary: Vocabulary, options: TrainingOptions, val: Minibatches | None) -> str:
    """A few lines, begun with a newline where the vocabulary has one."""
    prime = "" if vocabulary.unknown_tokens("\n") else "\n"
    return "".join(sample(model, vocabulary, prime, options.sample_length, seed=options.seed))


def show_problems(model: nn.Module, vocabulary: Vocabulary, options: TrainingOptions, val: Minibatches | None) -> str:
    """As many problems of the validation, with the model's answers, as there is room for."""
    return val.show(model, max(1, options.sample_length // (val.seq_length + 2))) if isinstance(val, Problems) else ""


TASKS = {"text": Task(split_text, show_text), "addition": Task(split_problems, show_problems)}
