"""What ``charrnn eval`` scores: a split of a data folder, or any text, by one model or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find
from charrnn.data.addition import Problems, read
from charrnn.data.text import minibatches, open_chosen, require
from charrnn.data.vocabulary import Vocabulary, Words, check_same_vocabulary
from charrnn.errors import UserError
from charrnn.evaluation.dynamic import dynamic_losses
from charrnn.evaluation.loss import Score, evaluate, losses, steps_at_once
from charrnn.evaluation.monte_carlo import monte_carlo_losses
from charrnn.model import evaluating

Report = Callable[[str], None]


@dataclass(frozen=True)
class Method:
    """How a text is scored.

    mc_samples: 0 for one pass without dropout, else that many Monte Carlo samples, drawn from ``seed``. dynamic: the
    rate of dynamic evaluation, None for weights that stay. each: whether the loss of each character is wanted.
    """

    mc_samples: int = 0
    seed: int = 123
    dynamic: float | None = None
    each: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a text: its number, from 1; its text; the mean loss over its characters, the newline among them."""

    number: int
    text: str
    score: Score


@dataclass(frozen=True)
class Scored:
    """A text with its score.

    static: with weights that stay; dynamic: by dynamic evaluation, None without it. rows: the text's rows, each with
    its characters int64 (N + 1,) and the losses in nats of all but the first, float64 (N,), by dynamic evaluation
    where there is one; empty where only the score was wanted.
    """

    vocabulary: Vocabulary
    static: Score
    dynamic: Score | None = None
    rows: Sequence[tuple[Tensor, Tensor]] = ()

    def characters(self) -> Iterator[tuple[str, float | None]]:
        """Each character of the rows, or each word with the space before it, and its loss, None for a row's first: it
        is read, not predicted."""
        for numbers, nats in self.rows:
            before = None
            for number, loss in zip(numbers.tolist(), [None, *nats.tolist()], strict=True):
                yield self.vocabulary.piece(number, before), loss
                before = number

    def lines(self) -> list[Line]:
        """The lines of the rows, worst first. A line ends after its newline or at its row's end."""
        newline = self.vocabulary.newline
        found: list[Line] = []
        for numbers, nats in self.rows:
            ends = (numbers == newline).nonzero().flatten() + 1 if newline is not None else numbers[:0]
            padded = torch.cat([nats.new_full((1,), torch.nan), nats])
            for line, each in zip(numbers.tensor_split(ends), padded.tensor_split(ends), strict=True):
                if len(line):
                    text = self.vocabulary.decode(line.tolist()).removesuffix("\n")
                    found.append(Line(len(found) + 1, text, Score.of(each[~each.isnan()])))
        # a text that begins with a newline has a first line in which nothing was predicted
        return sorted((line for line in found if line.score.characters), key=lambda line: -line.score.loss)


class Scorer:
    """Scores texts with the models of one or more checkpoints, their probabilities averaged.

    The first checkpoint's settings say how a data folder is split. unk: the word that stands for those which models of
    words do not know, '' for the one chosen in training. Raises UserError where the models know different characters.
    """

    def __init__(
        self, paths: Sequence[str], method: Method, choose: Callable[[str], torch.device], unk: str = ""
    ) -> None:
        self.paths = [str(find(Path(path))) for path in paths]
        members = [Checkpoint.load(path) for path in self.paths]
        check_same_vocabulary(self.paths, [member.vocabulary for member in members])
        self.saved = members[0]
        self.vocabulary = self.saved.vocabulary
        if unk:
            if not isinstance(self.vocabulary, Words):
                raise UserError(f"-unk {unk}: is a word, and this is a model of {self.vocabulary.units}")
            self.vocabulary = self.vocabulary.with_unk(unk)
        device = choose(self.saved.options.precision)
        files = {member.options.model: member.model_file() for member in members}
        self.models = [member.build(files[member.options.model]).to(device) for member in members]
        self.method = method

    def split(self, name: str, data_dir: str | None, batch_size: int, report: Report) -> Scored:
        """Score one split of a folder, by default of training's text, in training's row layout with the state carried.

        With batch_size 1 a split file is read as one stream, and every character but its first is scored. Dynamic
        evaluation reads the rows one after another. Raises UserError for a split that is not there, or characters that
        the models do not know.
        """
        options, method = self.saved.options, self.method
        chosen = replace(options, data_dir=data_dir, input=()) if data_dir else options
        text = open_chosen(chosen, report, vocabulary=self.vocabulary)
        if options.task == "text" and batch_size == 1 and name in text.files:
            return self.stream(torch.from_numpy(text.files[name].astype(np.int64)))
        split = require(minibatches(text, replace(options, batch_size=batch_size)), name)
        if isinstance(split, Problems):
            return self.problems(split)
        if len(self.models) == 1 and not method.mc_samples and method.dynamic is None and not method.each:
            return Scored(self.vocabulary, evaluate(self.models[0], split))
        x, y = map(torch.cat, zip(*(split.batch(k) for k in range(len(split))), strict=True))
        return self.rows(x, y)

    def text(self, text: str, called: str = "the text") -> Scored:
        """Score any text. Raises UserError naming characters that the model does not know, and their line."""
        vocabulary = self.vocabulary
        if unknown := vocabulary.unknown(text):
            moves = "take it out, or use a model trained on such text"
            if vocabulary.level == "word":
                moves = f"name a word to stand for such ones with -unk, {moves}"
            raise UserError(
                f"{called} has {', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}, first in line "
                f"{first_line_with_unknown(text, vocabulary)}, which the model's training text never had: {moves}"
            )
        tokens = torch.tensor(vocabulary.encode(text))
        if self.saved.options.task == "addition":
            return self.problems(read(called, tokens.numpy(), vocabulary).in_equal_parts())
        return self.stream(tokens)

    def problems(self, problems: Problems) -> Scored:
        """Score problems of addition: the loss over the answers, and how many are right. Raises UserError."""
        if len(self.models) > 1 or self.method != Method(seed=self.method.seed):
            raise UserError(
                "a model of addition is scored as it is: leave out -ensemble, -mc_samples, -dynamic, -per_line and "
                "-per_char"
            )
        return Scored(self.vocabulary, evaluate(self.models[0], problems))

    def stream(self, tokens: Tensor) -> Scored:
        """Score one stream of characters, int64 (N,): each but the first, from all before it."""
        if len(tokens) < 2:
            raise UserError(f"there is nothing to score: a text needs at least two {self.vocabulary.units}")
        return self.rows(tokens[:-1, None], tokens[1:, None])

    def rows(self, x: Tensor, y: Tensor) -> Scored:
        """Score rows of text: x int64 (N, B), y the characters that follow."""
        method = self.method
        if method.dynamic is None:
            nats = averaged([self._static(model, x, y) for model in self.models]).cpu()
            static, dynamic = Score.of(nats), None
        else:
            stream = x.T.flatten(), y.T.flatten()
            columns = [part[:, None] for part in stream]
            static = Score.of(averaged([self._static(model, *columns) for model in self.models]))
            segment = self.saved.options.seq_length
            adapted = averaged([dynamic_losses(model, *stream, method.dynamic, segment) for model in self.models])
            dynamic, nats = Score.of(adapted), adapted.cpu().view(x.T.shape).T
        rows = [(torch.cat([x[:1, b], y[:, b]]), nats[:, b]) for b in range(x.shape[1])] if method.each else []
        return Scored(self.vocabulary, static, dynamic, rows)

    def _static(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        block = steps_at_once(x.shape[1], len(self.vocabulary))
        if self.method.mc_samples:
            generator = torch.Generator().manual_seed(self.method.seed)
            return monte_carlo_losses(model, x, y, self.method.mc_samples, generator, block)
        with evaluating(model):
            return losses(model, x, y, block)


def first_line_with_unknown(text: str, vocabulary: Vocabulary) -> int:
    return next(n for n, line in enumerate(text.split("\n"), 1) if vocabulary.unknown(line))


def averaged(losses: Sequence[Tensor]) -> Tensor:
    """The loss in nats of each character under the average of the models' probabilities, from each model's losses.

    Shapes are alike, and kept. Of the probabilities a model gives, only that of the character that came is needed.
    """
    return math.log(len(losses)) - torch.logsumexp(-torch.stack(list(losses)), 0)
