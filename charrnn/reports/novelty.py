"""How much of a text is copied: does a model write, or does it repeat its training text?

Two figures answer that: the share of the text's n-grams that occur in the training text, for each n, and the longest
passage that does. Any two texts by one author have names and turns of phrase in common, so the same figures are taken
of held-out text, the validation and test parts, which was copied from nowhere: those are natural.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from charrnn.data.encode import Tokens
from charrnn.data.text import Text
from charrnn.errors import UserError
from charrnn.reports.ngrams import NGRAMS, Figures, measure
from charrnn.settings.training import TrainingOptions

LIMIT = 1_000_000  # characters of a text that are looked at


HELD_OUT = 20_000  # of held-out text at least, where there are so many: fewer would make its figures uncertain


RARE = 0.01  # share of held-out n-grams in the training text: passages of that n do not recur by chance


SOME, MOST = 0.05, 0.5  # shares of such passages, beyond the held-out text's, on which the verdict turns


Verdict = Literal["own", "partly copied", "copied"]


@dataclass(frozen=True)
class Source:
    """Where a passage stands in a training text: the file, its line from 1, the characters (or bytes) before it."""

    file: str
    line: int
    offset: int


@dataclass(frozen=True)
class Novelty:
    """What there is to say of a text.

    source, passage: its longest passage in the training text. n: passages of that many characters are compared for the
    verdict; the held-out text's are rare.
    """

    text: Figures
    held_out: Figures | None
    source: Source | None
    passage: str
    n: int
    verdict: Verdict


class Part:
    """A part of a folder's texts: one or more pieces of a file, which did not follow on each other.

    tokens: (N,) the pieces, with ``separator`` between them.
    """

    def __init__(self, pieces: list[tuple[str, int, Tokens]], separator: int) -> None:
        self.pieces = pieces
        lengths = [len(tokens) + 1 for _, _, tokens in pieces]
        self.starts = np.cumsum([0, *lengths[:-1]])
        self.tokens: Tokens = pieces[0][2]
        if len(pieces) > 1:
            self.tokens = np.full(sum(lengths) - 1, separator, np.min_scalar_type(separator))
            for start, (_, _, tokens) in zip(self.starts.tolist(), pieces, strict=True):
                self.tokens[start : start + len(tokens)] = tokens

    def place(self, index: int) -> tuple[str, int]:
        """The file in which a token stands, and the number of tokens before it there."""
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        name, offset, _ = self.pieces[k]
        return name, offset + index - int(self.starts[k])


def part(text: Text, names: tuple[str, ...], options: TrainingOptions) -> Part | None:
    """The splits of these names together, as training with these options reads them; None where there are none."""
    if "input" in text.files:
        splits = text.split(options.batch_size, options.seq_length, options.train_frac, options.val_frac)
        pieces = []
        for split in (splits[name] for name in names if name in splits):
            for row in range(split.batch_size):
                offset = row * split.row_length + split.start
                pieces.append(("input", offset, split.tokens[offset : offset + len(split) * split.seq_length]))
    else:
        pieces = [(name, 0, text.files[name]) for name in names if name in text.files]
    return Part(pieces, len(text.vocabulary)) if pieces else None


def examine(words: str, text: Text, options: TrainingOptions) -> Novelty:
    """Compare what was written with the training part of a folder's text, and with its held-out parts.

    Raises UserError for fewer characters than the shortest n-gram has.
    """
    separator = len(text.vocabulary)
    codes = text.vocabulary.split(words)[:LIMIT]
    if len(codes) < NGRAMS.start:
        raise UserError(
            f"the text has {len(codes)} {text.vocabulary.units}: "
            f"there is nothing to compare in less than {NGRAMS.start}"
        )
    unknown = separator + 1  # a character that the training text lacks is in no n-gram of it
    written = np.array([text.vocabulary.numbers.get(code, unknown) for code in codes], np.min_scalar_type(unknown))
    training, other = part(text, ("train",), options), part(text, ("val", "test"), options)
    assert training is not None, "Text.split gives no text without a training part"
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
    """The line, from 1, of the character before which there are so many in the file."""
    newline = text.vocabulary.newline
    return 1 + int(np.count_nonzero(text.files[name][:offset] == newline)) if newline is not None else 1


def judge(text: Figures, held_out: Figures | None) -> tuple[int, Verdict]:
    """The n at which passages of held-out text have become rare, and what the share of the text's own says there."""
    natural = held_out.shares if held_out else {}
    common = [n for n in text.shares if n in natural] or list(text.shares)
    n = next((n for n in common if natural.get(n, 1.0) <= RARE), common[-1])
    beyond = text.shares[n] - natural.get(n, 0.0)
    return n, "own" if beyond < SOME else "partly copied" if beyond < MOST else "copied"
