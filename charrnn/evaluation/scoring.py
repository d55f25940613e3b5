"""Score a split of a data folder, or any text, with one model or several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best
from charrnn.compute import Report, choose_device, silent
from charrnn.data.addition import Problems, read
from charrnn.data.text import minibatches, open_chosen, require
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError
from charrnn.evaluation.dynamic import dynamic_losses
from charrnn.evaluation.loss import Score, evaluate, losses, steps_at_once
from charrnn.evaluation.monte_carlo import monte_carlo_losses
from charrnn.model import evaluating
from charrnn.settings.evaluation import EXCLUSIVE, EvaluationOptions
from charrnn.settings.option import changed, checked, exclude


@dataclass(frozen=True)
class Line:
    """One line of a scored text."""

    # counted from 1
    number: int
    text: str
    # over the tokens of the line, including its newline
    score: Score


@dataclass(frozen=True)
class Scored:
    """A text and its scores."""

    vocabulary: Vocabulary
    # with fixed weights
    static: Score
    # by dynamic evaluation, if it was asked for
    dynamic: Score | None = None
    # for each row, its token ids, int64 (N + 1,), and the loss of each but the first in nats, float64 (N,). If dynamic
    # evaluation was asked for, these are its losses. Empty unless the loss of each token was asked for
    rows: Sequence[tuple[Tensor, Tensor]] = ()

    def tokens(self) -> Iterator[tuple[str, float | None]]:
        """Yield each token's text and its loss in nats. A word's text includes the space before it.

        The first token of a row is not predicted, so its loss is None.
        """
        for ids, nats in self.rows:
            before = None
            for token, loss in zip(ids.tolist(), [None, *nats.tolist()], strict=True):
                yield self.vocabulary.token_text(token, before), loss
                before = token

    def lines(self) -> list[Line]:
        """Return the lines of the rows, worst first. A line ends after its newline or at the end of its row."""
        newline = self.vocabulary.newline
        found: list[Line] = []
        for ids, nats in self.rows:
            ends = (ids == newline).nonzero().flatten() + 1 if newline is not None else ids[:0]
            padded = torch.cat([nats.new_full((1,), torch.nan), nats])
            for line, each in zip(ids.tensor_split(ends), padded.tensor_split(ends), strict=True):
                if len(line):
                    text = self.vocabulary.decode(line.tolist()).removesuffix("\n")
                    found.append(Line(len(found) + 1, text, Score.of(each[~each.isnan()])))
        # if a row begins with a newline, nothing was predicted in its first line
        return sorted((line for line in found if line.score.tokens), key=lambda line: -line.score.loss)


class Scorer:
    """Score texts with the models of one or more checkpoints, averaging their probabilities.

    The settings of the first checkpoint decide how a data folder is split. ``each`` asks for the loss of each token.
    Raises UserError if the models have different vocabularies, or if the word of -unk is not in the vocabulary.
    """

    def __init__(
        self,
        sources: Sequence[str | Path | Checkpoint],
        options: EvaluationOptions,
        report: Report,
        each: bool = False,
    ) -> None:
        names, members = zip(*map(opened, sources), strict=True)
        for name, member in zip(names[1:], members[1:], strict=True):
            if difference := members[0].vocabulary.difference(member.vocabulary, names[0], name):
                raise UserError(f"{names[0]} and {name} cannot be averaged: {difference}")
        self.names: tuple[str, ...] = names
        self.saved: Checkpoint = members[0]
        self.vocabulary = with_unk(self.saved.vocabulary, options.unk) if options.unk else self.saved.vocabulary
        files = {name: registry.find(name) for name in {member.options.model for member in members}}
        device = choose_device(options.gpuid, report, self.saved.options.precision)
        models = [member.build(files[member.options.model]) for member in members]
        self.models: list[nn.Module] = [model.to(device) for model in models]
        self.options = options
        self.report = report
        self.each = each

    @property
    def plain(self) -> bool:
        """Whether only the mean loss is wanted, and a single pass of a single model gives it."""
        options = self.options
        return len(self.models) == 1 and not options.mc_samples and options.dynamic is None and not self.each

    def split(self) -> Scored:
        """Score one split of a data folder, cut into rows as in training, with the state carried.

        The folder is the one used for training unless the options name another. With a batch size of 1, a split that
        has its own file is read as one stream, and every token except the first is scored. Dynamic evaluation reads the
        rows one after another. Raises UserError if the split does not exist, or if it has unknown tokens.
        """
        saved, name = self.saved.options, self.options.split
        batch_size = self.options.batch_size or saved.batch_size
        chosen = replace(saved, data_dir=self.options.data_dir, input=()) if self.options.data_dir else saved
        # nothing is written to a folder that only the checkpoint names
        text = open_chosen(chosen, self.report, self.vocabulary, keep=bool(self.options.data_dir))
        if saved.task == "text" and batch_size == 1 and name in text.files:
            return self.stream(torch.from_numpy(text.files[name][:].astype(np.int64)))
        split = require(minibatches(text, replace(saved, batch_size=batch_size)), name)
        if isinstance(split, Problems):
            return self.problems(split)
        if self.plain:
            return Scored(self.vocabulary, evaluate(self.models[0], split))
        x, y = map(torch.cat, zip(*(split.batch(k) for k in range(len(split))), strict=True))
        return self.rows(x, y)

    def text(self, text: str, called: str = "the text") -> Scored:
        """Score any text. Raises UserError naming the unknown tokens and the first line that has one."""
        vocabulary = self.vocabulary
        if unknown := vocabulary.unknown_tokens(text):
            first = next(n for n, line in enumerate(text.split("\n"), 1) if vocabulary.unknown_tokens(line))
            raise vocabulary.unknown_error(called, unknown, place=f" (first in line {first})")
        ids = torch.tensor(vocabulary.encode(text))
        if self.saved.options.task == "addition":
            return self.problems(read(called, ids.numpy(), vocabulary).in_equal_parts())
        return self.stream(ids)

    def problems(self, problems: Problems) -> Scored:
        """Score problems of addition: the loss over the answers, and how many are right.

        Raises UserError unless ``plain``.
        """
        if not self.plain:
            raise UserError(
                "a model of addition cannot be scored in this way: leave out -ensemble, -mc_samples, -dynamic, "
                "-per_line and -per_char"
            )
        return Scored(self.vocabulary, evaluate(self.models[0], problems))

    def stream(self, ids: Tensor) -> Scored:
        """Score each token id of a stream, int64 (N,), except the first. Each is predicted from all before it."""
        if len(ids) < 2:
            raise UserError(f"nothing to score: a text needs at least two {self.vocabulary.units}")
        return self.rows(ids[:-1, None], ids[1:, None])

    def rows(self, x: Tensor, y: Tensor) -> Scored:
        """Score rows of text: token ids ``x``, int64 (N, B), and the ids ``y`` that follow them."""
        dynamic = None
        if self.options.dynamic is None:
            nats = self.losses(x, y)
            static = Score.of(nats)
        else:
            stream = x.T.flatten(), y.T.flatten()
            static = Score.of(self.losses(*(ids[:, None] for ids in stream)))
            adapted = self.dynamic_losses(*stream, self.options.dynamic)
            dynamic, nats = Score.of(adapted), adapted.view(x.T.shape).T
        rows = [(torch.cat([x[:1, b], y[:, b]]), nats[:, b]) for b in range(x.shape[1])] if self.each else []
        return Scored(self.vocabulary, static, dynamic, rows)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each target in nats with fixed weights, float64 (N, B), on the CPU."""
        block = steps_at_once(x.shape[1], len(self.vocabulary))

        def one(model: nn.Module) -> Tensor:
            if self.options.mc_samples:
                generator = torch.Generator().manual_seed(self.options.seed)
                return monte_carlo_losses(model, x, y, self.options.mc_samples, generator, block)
            with evaluating(model):
                return losses(model, x, y, block)

        return averaged([one(model) for model in self.models]).cpu()

    def dynamic_losses(self, x: Tensor, y: Tensor, learning_rate: float) -> Tensor:
        """Return the dynamic evaluation's loss of each target of a stream in nats, float64 (N,), on the CPU."""
        segment = self.saved.options.seq_length
        return averaged([dynamic_losses(model, x, y, learning_rate, segment) for model in self.models]).cpu()


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text."""

    # mean, in nats per token
    loss: float
    # None for a model of words
    bits_per_character: float | None
    # per token
    perplexity: float
    # number of predicted tokens
    tokens: int
    # further measures of quality, by name, such as the accuracy of a model of addition
    measures: dict[str, float]
    # by dynamic evaluation, if it was asked for
    dynamic: Evaluation | None = None

    @classmethod
    def of(cls, score: Score, vocabulary: Vocabulary, dynamic: Score | None = None) -> Evaluation:
        """Return the figures of a score, and those of dynamic evaluation if its score is given."""
        adapted = cls.of(dynamic, vocabulary) if dynamic else None
        figure = vocabulary.figure(score.loss)
        bits = figure.value if figure.key == "bpc" else None
        return cls(score.loss, bits, score.perplexity, score.tokens, score.measures, adapted)


def evaluation(sources: Sequence[str | Path | Checkpoint], text: str | None, settings: Mapping[str, Any]) -> Evaluation:
    """Score a text, or a split of the data if it is None, with the models of one or more checkpoints.

    ``settings`` are those of EvaluationOptions, by name. Raises UserError.
    """
    options = checked(EvaluationOptions, settings)
    exclude(EXCLUSIVE, changed(options) | ({} if text is None else {"text": "-text"}))
    scorer = Scorer(sources, options, silent)
    scored = scorer.split() if text is None else scorer.text(text)
    return Evaluation.of(scored.static, scored.vocabulary, scored.dynamic)


def opened(source: str | Path | Checkpoint) -> tuple[str, Checkpoint]:
    """Return the name and contents of a checkpoint: a file, the best one in a folder, or one already loaded."""
    if isinstance(source, Checkpoint):
        return source.name, source
    path = find_best(Path(source))
    return str(path), Checkpoint.load(path)


def with_unk(vocabulary: Vocabulary, unk: str) -> Words:
    """Return the vocabulary with ``unk`` for unknown words. Raises UserError unless ``unk`` is one of its words."""
    if not isinstance(vocabulary, Words):
        raise UserError(f"-unk {unk}: only a model of words takes -unk, and this is one of {vocabulary.units}")
    return vocabulary.with_unk(unk)


def averaged(losses: Sequence[Tensor]) -> Tensor:
    """Return the loss in nats of each token under the average of several models' probabilities.

    ``losses`` has one tensor for each model, all of the same shape.
    """
    return math.log(len(losses)) - torch.logsumexp(-torch.stack(list(losses)), 0)
