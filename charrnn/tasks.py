"""What a model is trained for: to go on with a text, or to add numbers.

A task says where minibatches come from, and what is shown of a model at a validation. Which characters count, where
the state begins anew and what is measured besides the loss the minibatches know themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from charrnn import problems
from charrnn.data import Text
from charrnn.errors import UserError
from charrnn.evaluation import Minibatches
from charrnn.options import TrainingOptions
from charrnn.problems import Problems
from charrnn.sampling import sample
from charrnn.vocabulary import Vocabulary


@dataclass(frozen=True)
class Task:
    """split: the minibatches of train and of what else there is. show: what the model writes now, for people to see."""

    split: Callable[[Text, TrainingOptions], Mapping[str, Minibatches]]
    show: Callable[[nn.Module, Vocabulary, TrainingOptions, Minibatches | None], str]


def of(options: TrainingOptions) -> Task:
    """The task that the settings name."""
    return TASKS[options.task]


def with_seq_length(options: TrainingOptions, train: Minibatches) -> TrainingOptions:
    """The settings with the time steps that the minibatches have. Raises UserError where others were asked for."""
    if options.seq_length not in (TrainingOptions.seq_length, train.seq_length):
        raise UserError(
            f"-seq_length {options.seq_length}: a problem of this text has {train.seq_length} time steps; leave it out"
        )
    return replace(options, seq_length=train.seq_length)


def split_text(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    return text.split(options.batch_size, options.seq_length, options.train_frac, options.val_frac)


def show_text(model: nn.Module, vocabulary: Vocabulary, options: TrainingOptions, val: Minibatches | None) -> str:
    """A few lines, begun with a newline where the vocabulary has one."""
    prime = "" if vocabulary.unknown("\n") else "\n"
    return "".join(sample(model, vocabulary, prime, options.sample_length, seed=options.seed))


def split_problems(text: Text, options: TrainingOptions) -> Mapping[str, Minibatches]:
    if "train" not in text.files:
        raise UserError(
            "-task addition needs train.txt and val.txt, so that no problem is in both: charrnn prepare addition "
            "makes them"
        )
    splits = {
        name: problems.read(text.called[name], tokens, text.vocabulary, options.batch_size)
        for name, tokens in text.files.items()
    }
    train = splits["train"]
    if not len(train):
        raise UserError(
            f"{text.called['train']} has {len(train.lines)} problems, and a minibatch takes {options.batch_size}: "
            "lower -batch_size"
        )
    return {name: split if name == "train" else split.in_equal_parts() for name, split in splits.items()}


def show_problems(model: nn.Module, vocabulary: Vocabulary, options: TrainingOptions, val: Minibatches | None) -> str:
    """As many problems of the validation, with the model's answers, as there is room for."""
    return val.show(model, max(1, options.sample_length // (val.seq_length + 2))) if isinstance(val, Problems) else ""


TASKS = {"text": Task(split_text, show_text), "addition": Task(split_problems, show_problems)}
