"""Resolve a run's settings, and build what it starts from: text, model, device and training state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from charrnn import compute, registry
from charrnn.checkpoints.checkpoint import Checkpoint, new_run_id
from charrnn.checkpoints.folder import Kept, find_newest, is_newest, kept_in
from charrnn.compute import Report, choose_device, keep_freed_memory, weights_dtype
from charrnn.data.datasets import catalogue
from charrnn.data.minibatches import Minibatches
from charrnn.data.text import Text, find_files, has_text, minibatches, open_chosen, with_seq_length
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError, foreign
from charrnn.model import problem_of_weights
from charrnn.settings import recipes
from charrnn.settings.resolve import Configuration, Sources, check_exclusive, resolve
from charrnn.settings.training import TrainingOptions, training_options
from charrnn.training import memory, metrics
from charrnn.training.loop import Training, check_contract
from charrnn.training.rehearsal import rehearse
from charrnn.training.tuning import tune

# the settings that decide which model's flags apply
DECISIVE = {"init_from", "model"}


def configure(flags: Mapping[str, Any], config: str | None = None, resume: str | None = None) -> Configuration:
    """Load the files that the flags name, and resolve every setting. Ignores flags that are None. Raises UserError."""
    given = {name: value for name, value in flags.items() if value is not None}
    return resolve(given, load(given, config, resume))


def load(flags: Mapping[str, Any], config: str | None, resume: str | None) -> Sources:
    """Read the TOML file and the checkpoint that the flags name, and find the model. Raises UserError.

    The values may be unparsed strings: a command line cannot be parsed before the model's own flags are known.
    """
    file = recipes.read_toml(recipes.find(config)) if config else {}
    check_exclusive(flags, file, resume)
    known = training_options()
    chosen = {name: known[name].convert(value) for name, value in {**file, **flags}.items() if name in DECISIVE}
    start = Checkpoint.load(chosen["init_from"]) if chosen.get("init_from") else None
    newest, resumed = load_to_resume(Path(resume)) if resume else (None, None)
    saved = start or resumed
    model = registry.find(saved.options.model if saved else chosen.get("model", TrainingOptions.model))
    return Sources(file, config, model, start, resumed, str(newest) if newest else None)


def load_to_resume(path: Path) -> tuple[Path, Checkpoint]:
    """Load a checkpoint, or the newest in a folder. Return its file, too.

    If it has no run identity, or its run has newer checkpoints, give it a new one: a second run begins here. With the
    same identity, the newest checkpoint would remain the first run's.
    """
    file = find_newest(path)
    checkpoint = Checkpoint.load(file)
    # the newest in a folder is also the newest of its run
    if not checkpoint.run_id or (file == path and not is_newest(file)):
        checkpoint.run_id = new_run_id()
    return file, checkpoint


@dataclass(frozen=True)
class Setup:
    """Everything that a new or resumed run starts from."""

    options: TrainingOptions
    model_options: dict[str, Any]
    text: Text
    # train, and val and test if there are any
    splits: Mapping[str, Minibatches]
    model: nn.Module
    # the model on torch's meta device, which takes no memory; None if it cannot be built there
    skeleton: nn.Module | None
    training: Training
    # identity of the run
    run_id: str
    # of a resumed run: its validated checkpoints, and with -on_nan rollback the state of its last regular save
    kept: tuple[Kept, ...] = ()
    good: dict[str, Any] | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.text.vocabulary

    @property
    def parameters(self) -> int:
        """Number of values that the model learns."""
        return sum(p.numel() for p in self.model.parameters())

    def summary(self) -> str:
        """Return the model, its size, the device and the size of the text, in one line."""
        return (
            f"{self.options.model} with {self.parameters:,} parameters on {self.training.device}; "
            f"{len(self.vocabulary):,} {self.vocabulary.units}, {len(self.splits['train'])} minibatches an epoch"
        )

    def enough_memory(self) -> AbstractContextManager[None]:
        """Return a context in which running out of memory raises a UserError that says what the run needs."""
        return memory.explained(self.skeleton, len(self.vocabulary), self.options)


def prepare(configuration: Configuration, report: Report, keep: bool = True) -> Setup:
    """Open the text, build the model, and resume a run if asked to. Raises UserError.

    Writes only the text, if charrnn must make it, and a cache of its vocabulary and token ids. Without ``keep`` it
    writes nothing permanent.
    """
    options = configuration.options
    notes = list(configuration.notes)  # reported only after all checks, so that a mistake prints a single line
    device = choose_device(options.gpuid, notes.append, options.precision)
    compute.prepare(options.precision, device, notes.append)
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    options = replace(options, input=input_files(configuration))
    metrics.check(options)
    check_model(configuration, device)
    text = open_run_text(options, report, keep, configuration)
    splits = minibatches(text, options)
    options = with_seq_length(options, splits["train"])

    sizes = (len(text.vocabulary), options.rnn_size, options.num_layers, options.dropout)
    skeleton = configuration.model.skeleton(*sizes, **configuration.model_options)
    compute.seed(options.seed)
    with memory.explained(skeleton, len(text.vocabulary), options):
        model = configuration.model.create(*sizes, **configuration.model_options)
        check_contract(options.model, problem_of_weights(model))
        model.to(device, weights_dtype(options.precision))
        if configuration.start:
            start_from(configuration.start, model, text, options)
        rehearse(model, configuration, text.vocabulary, splits, options)
        # the checkpoint records threads and kernels, because sums are identical only with the same ones
        if device.type == "cpu":
            options = tune(model, splits["train"], options, report)
        else:
            options = replace(options, threads=torch.get_num_threads(), kernels="torch")
        training = Training(model, splits["train"], splits.get("val"), options)
        kept, good = resume(training, text, configuration.resume) if configuration.resume else ((), None)
    for line in notes:
        report(line)
    run_id = configuration.resume.run_id if configuration.resume else new_run_id()
    own = configuration.model_options
    return Setup(options, own, text, splits, model, skeleton, training, run_id, tuple(kept), good)


def check_model(configuration: Configuration, device: torch.device) -> None:
    """Check the model, the checkpoint and the memory before the text is read. Raises UserError."""
    options, own = configuration.options, configuration.model_options
    sizes = (options.rnn_size, options.num_layers, options.dropout)
    skeleton = configuration.model.check(*sizes, **own)
    if skeleton:
        check_contract(options.model, problem_of_weights(skeleton))
    for saved in (configuration.start, configuration.resume):
        if saved:
            saved.check(configuration.model, **own)
    memory.check(skeleton, options, device)


def input_files(configuration: Configuration) -> tuple[str, ...]:
    """Return the files that -input stands for. Raises UserError."""
    given, resumed = configuration.options.input, configuration.resume
    if resumed and given == resumed.options.input:
        return given  # a checkpoint has names; one that looks like a pattern must not search the file system
    return tuple(map(str, find_files(given)))


def open_run_text(options: TrainingOptions, report: Report, keep: bool, configuration: Configuration) -> Text:
    """Open the text that the settings name. If it is missing and charrnn can make it, make it first.

    At word level, use the vocabulary of the checkpoint that the run starts from, since no two texts have the same
    words in the same order. A resumed run makes no text, and writes nothing unless the text is the same as before.
    """
    before, known = configuration.start or configuration.resume, None
    if before and options.level == before.vocabulary.level and isinstance(before.vocabulary, Words):
        known = before.vocabulary.with_unk(options.unk) if options.unk else before.vocabulary
    folder = Path(options.data_dir)
    if configuration.resume:
        return open_chosen(options, report, known, keep, partial(check_text, configuration.resume, options))
    name = None if options.input else catalogue.for_folder(folder)
    if not name or has_text(folder):
        return open_chosen(options, report, known, keep)
    if keep:
        catalogue.prepare(name, folder, report)
        return open_chosen(options, report, known)
    with TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as temporary:
        catalogue.prepare(name, temporary, report)
        return open_chosen(replace(options, data_dir=temporary), report, known, keep=False)


def check_text(checkpoint: Checkpoint, options: TrainingOptions, fingerprint: Mapping[str, str]) -> None:
    """Raise UserError unless the run of the checkpoint was trained on the text with this fingerprint."""
    if not checkpoint.training:
        raise UserError(
            "the checkpoint comes from charrnn import and has no optimizer state to resume: "
            "begin a new run from it with -init_from"
        )
    if checkpoint.training.get("texts") != fingerprint:
        raise other_text(options)


def other_text(options: TrainingOptions) -> UserError:
    return UserError(
        f"{name_of_text(options)} is not the one that this run was trained on: "
        "restore the original text, or begin a new run with -init_from"
    )


def name_of_text(options: TrainingOptions) -> str:
    """Return the name of the text for messages."""
    return "the text of -input" if options.input else f"the text in {options.data_dir}"


def start_from(checkpoint: Checkpoint, model: nn.Module, text: Text, options: TrainingOptions) -> None:
    """Copy a checkpoint's weights into the model. Raises UserError if its tokens differ from the text's."""
    theirs = checkpoint.vocabulary
    if difference := text.vocabulary.difference(theirs, name_of_text(options), "the checkpoint"):
        raise UserError(
            f"{difference}: use a text with the same {theirs.units}, and the checkpoint's -level and -encoding"
        )
    checkpoint.restore(model)


def resume(training: Training, text: Text, checkpoint: Checkpoint) -> tuple[list[Kept], dict[str, Any] | None]:
    """Continue exactly where the checkpoint was saved.

    Returns the run's validated checkpoints, and the state of its last regular save unless the checkpoint is that save.
    Raises UserError if the vocabulary of the text is not the same, or if the checkpoint cannot be resumed.
    """
    saved = checkpoint.training
    if checkpoint.vocabulary != text.vocabulary:
        raise other_text(training.options)
    try:
        good = saved.get("good")
        if good is not None:  # what a rollback will restore must fit, too
            replace(checkpoint, weights=good["weights"]).restore(training.model)
            training.load_state_dict(good["training"])
        checkpoint.restore(training.model)
        training.load_state_dict(saved)
        return kept_in(saved), good
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        if foreign(error):  # the model itself fails, whatever the checkpoint
            raise
        raise UserError(f"the checkpoint is damaged: it cannot be resumed ({error})") from None
