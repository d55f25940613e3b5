"""Measure how much of a text is copied from the training text.

There are two measures: for each n, the share of the text's n-grams that occur in the training text, and the longest
passage that does. Texts by one author always share names and phrases, so held-out text (the val and test splits) is
measured as well and serves as the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from charrnn.data.encode import TokenIds
from charrnn.data.text import Text
from charrnn.errors import UserError
from charrnn.reports.ngrams import NGRAMS, Figures, measure
from charrnn.settings.training import TrainingOptions

LIMIT = 1_000_000  # largest number of tokens of a text to examine

HELD_OUT = 20_000  # tokens of held-out text, if there are that many; with fewer, the baseline would be uncertain

RARE = 0.01  # if at most this share of held-out n-grams is in the training text, a match is no coincidence

SOME, MOST = 0.05, 0.5  # thresholds of the verdict: the text's share of such n-grams minus that of held-out text

Verdict = Literal["own", "partly copied", "copied"]


@dataclass(frozen=True)
class Source:
    """The place of a passage in the training text."""

    file: str
    # from 1
    line: int
    # number of tokens before it in the file
    offset: int


@dataclass(frozen=True)
class Novelty:
    text: Figures
    held_out: Figures | None
    # of the longest passage
    source: Source | None
    passage: str
    # length of the n-grams that decide the verdict; they are rare in held-out text
    n: int
    verdict: Verdict


class Corpus:
    """The tokens of one or more splits: pieces of files, which need not be adjacent, joined by a separator."""

    def __init__(self, pieces: list[tuple[str, int, TokenIds]], separator: int) -> None:
        self.pieces = pieces
        lengths = [len(tokens) + 1 for _, _, tokens in pieces]
        self.starts = np.cumsum([0, *lengths[:-1]])
        self.tokens: TokenIds = pieces[0][2]
        if len(pieces) > 1:
            self.tokens = np.full(sum(lengths) - 1, separator, np.min_scalar_type(separator))
            for start, (_, _, tokens) in zip(self.starts.tolist(), pieces, strict=True):
                self.tokens[start : start + len(tokens)] = tokens

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a token, and the number of tokens that precede it in that file."""
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        name, offset, _ = self.pieces[k]
        return name, offset + index - int(self.starts[k])


def corpus(text: Text, names: tuple[str, ...], options: TrainingOptions) -> Corpus | None:
    """Join the named splits as training with these options reads them. Return None if the text has none of them."""
    if "input" in text.files:
        splits = text.split(options.batch_size, options.seq_length, options.train_frac, options.val_frac)
        pieces: list[tuple[str, int, TokenIds]] = []
        for split in (splits[name] for name in names if name in splits):
            for row in range(split.batch_size):
                offset = row * split.row_length + split.start
                pieces.append(("input", offset, split.ids[offset : offset + len(split) * split.seq_length]))
    else:
        pieces = [(name, 0, text.files[name]) for name in names if name in text.files]
    return Corpus(pieces, len(text.vocabulary)) if pieces else None


def examine(words: str, text: Text, options: TrainingOptions) -> Novelty:
    """Compare ``words`` and the held-out text with the training text.

    Raises UserError if ``words`` is shorter than the shortest n-gram.
    """
    separator = len(text.vocabulary)
    codes = text.vocabulary.split(words)[:LIMIT]
    if len(codes) < NGRAMS.start:
        raise UserError(
            f"the text has {len(codes)} {text.vocabulary.units}; at least {NGRAMS.start} are needed to compare it"
        )
    unknown = separator + 1  # an id that does not occur in the training text
    written = np.array([text.vocabulary.ids.get(code, unknown) for code in codes], np.min_scalar_type(unknown))
    training, other = corpus(text, ("train",), options), corpus(text, ("val", "test"), options)
    assert training is not None, "Text.split always makes a training split"
    figures = measure(written, training.tokens, separator)
    natural = measure(other.tokens[: max(len(codes), HELD_OUT)], training.tokens, separator) if other else None
    source, passage = None, ""
    if figures.longest:
        name, offset = training.place(figures.longest.source)
        source = Source(text.called[name], line(text, name, offset), offset)
        start = figures.longest.place
        passage = text.vocabulary.decode(written[start : start + figures.longest.length].tolist())
    n, verdict = judge(figures, natural)
    return Novelty(figures, natural, source, passage, n, verdict)


def line(text: Text, name: str, offset: int) -> int:
    """Return the line number, from 1, of the token at this offset in the file."""
    newline = text.vocabulary.newline
    return 1 + int(np.count_nonzero(text.files[name][:offset] == newline)) if newline is not None else 1


def judge(text: Figures, held_out: Figures | None) -> tuple[int, Verdict]:
    """Return the smallest n at which held-out text shares few n-grams with the training text, and the verdict."""
    natural = held_out.shares if held_out else {}
    common = [n for n in text.shares if n in natural] or list(text.shares)
    n = next((n for n in common if natural.get(n, 1.0) <= RARE), common[-1])
    beyond = text.shares[n] - natural.get(n, 0.0)
    return n, "own" if beyond < SOME else "partly copied" if beyond < MOST else "copied"
