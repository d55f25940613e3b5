"""Problems of addition as minibatches: which characters count, and whether a model's own answers are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.data.datasets import addition
from charrnn.data.encode import Tokens
from charrnn.data.minibatches import IGNORED
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.model import device_of, evaluating

DELIMITER, NEWLINE, OTHER = 10, 11, 12  # after the digits, which are their own values


BLOCK = 512  # problems that are answered at once


@dataclass(frozen=True, eq=False)
class Problems:
    """Lines of a text in the layout of ``charrnn.addition``, in their order, ``batch_size`` of them to a minibatch.

    lines: (M, W) numbers of characters, without the newlines; digits: of the numbers to add. A minibatch has whole
    problems, each read from a zero state. Only the answer's characters count: where y is a character of the question
    it is IGNORED. The M % batch_size last problems are in no minibatch, but ``measure`` has them all.
    """

    lines: NDArray[np.unsignedinteger[Any]]
    digits: int
    batch_size: int
    vocabulary: Vocabulary
    carries = False

    def __len__(self) -> int:
        return len(self.lines) // self.batch_size

    @property
    def seq_length(self) -> int:
        """Time steps of a problem: all its characters but the last are read."""
        return addition.width(self.digits) - 1

    @property
    def predicted(self) -> int:
        """Of those, how many count."""
        return addition.answer(self.digits)

    def in_equal_parts(self) -> Problems:
        """The same in the largest minibatches, up to BLOCK problems, that leave none out."""
        divisors = (size for size in range(1, BLOCK + 1) if len(self.lines) % size == 0)
        return replace(self, batch_size=max(divisors))

    def begins(self, k: int) -> bool:
        """Every minibatch is read from a zero state."""
        return True

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Minibatch k, from 0: characters and the ones that follow them, each int64 (T, B). Raises IndexError."""
        if not 0 <= k < len(self):
            raise IndexError(f"minibatch {k} of {len(self)}")
        lines = self._columns(k * self.batch_size, (k + 1) * self.batch_size)
        x, y = lines[:-1], lines[1:].clone()
        y[: addition.question(self.digits) - 1] = IGNORED
        return x, y

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Shares of right answers, by greedy decoding: after the question the model reads what it wrote itself.

        digit_accuracy: of the digits of the true sums, those that stand in their places; sum_accuracy: of the problems,
        those answered without a fault, the closing - included. One wrong character makes a sum wrong, so the latter is
        also the share of problems in which every character is the most probable one after a faultless beginning.
        """
        places = right_digits = right_sums = 0
        for first in range(0, len(self.lines), BLOCK):
            lines = self._columns(first, first + BLOCK)
            expected = lines[addition.question(self.digits) :]
            right = self.answers(model, lines) == expected
            digit = expected != lines[0, 0]
            places += int(digit.sum())
            right_digits += int((right & digit).sum())
            right_sums += int(right.all(0).sum())
        return {"digit_accuracy": right_digits / places, "sum_accuracy": right_sums / len(self.lines)}

    def answers(self, model: nn.Module, lines: Tensor) -> Tensor:
        """What the model answers, greedily: int64 (T, B), on the CPU, from the first character of the sum on.

        lines: int64 (W, B), of which it reads the questions alone.
        """
        x = lines[: addition.question(self.digits)].to(device_of(model))
        state, written = None, []
        with evaluating(model):
            for _ in range(self.predicted):
                logits, state = model(x, state)
                x = logits[-1:].argmax(-1)
                written.append(x)
        return torch.cat(written).cpu()

    def show(self, model: nn.Module, count: int) -> str:
        """The first problems with the model's answers, the wrong ones marked, as ``-12-34-47-- wrong``."""
        lines = self._columns(0, count)
        answers = self.answers(model, lines)
        expected = lines[addition.question(self.digits) :]
        shown = []
        for line, own, true in zip(lines.T, answers.T, expected.T, strict=True):
            written = self.vocabulary.decode([*line[: -len(own)].tolist(), *own.tolist()]).replace("\n", "\\n")
            shown.append(written if torch.equal(own, true) else f"{written} wrong")
        return "\n".join(shown)

    def _columns(self, start: int, stop: int) -> Tensor:
        """Some of the lines side by side: int64 (W, B)."""
        return torch.from_numpy(self.lines[start:stop].T.astype(np.int64))


def read(name: str, tokens: Tokens, vocabulary: Vocabulary, batch_size: int = 1) -> Problems:
    """The problems of a text. Raises UserError where there are none, and with its number where a line is none.

    name: what messages call the text; tokens: (N,), its characters' numbers. A last line without a newline counts.
    """
    values = symbols(vocabulary)[np.asarray(tokens)]
    if len(values) and values[-1] != NEWLINE:
        values = np.append(values, np.uint8(NEWLINE))
    ends = np.flatnonzero(values == NEWLINE)
    if not len(ends):
        raise UserError(f"{name} has no problem of addition: charrnn prepare addition makes some")

    def line(n: int) -> str:
        return vocabulary.decode(np.asarray(tokens[ends[n - 1] + 1 if n else 0 : ends[n]]).tolist())

    lengths = np.diff(ends, prepend=-1) - 1
    try:
        digits = addition.digits_of(line(0)[: 2**20])
    except ValueError:
        raise UserError(
            f"{name}, line 1: {line(0)[:60]!r} is no problem of addition, as charrnn prepare addition makes them"
        ) from None
    odd = np.flatnonzero(lengths != lengths[0])
    whole = values[: ends[odd[0] - 1] + 1 if len(odd) else len(values)].reshape(-1, lengths[0] + 1)[:, :-1]
    wrong = np.flatnonzero(~are_problems(whole, digits))
    first = wrong[0] if len(wrong) else odd[0] if len(odd) else None
    if first is not None:
        raise UserError(
            f"{name}, line {first + 1:,}: {addition.fault(line(int(first)), digits)}; mend it or take it out"
        )
    numbers = np.array([vocabulary.ids.get(code, 0) for code in vocabulary.split("0123456789-")], tokens.dtype)
    return Problems(numbers[whole], digits, batch_size, vocabulary)


def symbols(vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """Of each character's number, what it is in a problem: a digit's value, DELIMITER, NEWLINE or OTHER."""
    table = np.full(len(vocabulary), OTHER, np.uint8)
    for symbol, code in enumerate(vocabulary.split("0123456789-\n")):
        if code in vocabulary.ids:
            table[vocabulary.ids[code]] = symbol
    return table


def are_problems(lines: NDArray[np.uint8], digits: int) -> NDArray[np.bool_]:
    """For each line of symbols (M, W) whether it is a problem with the right sum, bool (M,)."""
    a, b = lines[:, 1 : digits + 1], lines[:, digits + 2 : 2 * digits + 2]
    total = np.empty((len(lines), digits + 1), np.uint8)
    carry = np.zeros(len(lines), np.uint8)
    for place in range(digits - 1, -1, -1):
        carry, total[:, place + 1] = np.divmod(a[:, place] + b[:, place] + carry, np.uint8(10))
    total[:, 0] = carry
    expected = np.full((len(lines), addition.answer(digits)), DELIMITER, np.uint8)
    long = carry == 1
    expected[long, :-1], expected[~long, :-2] = total[long], total[~long, 1:]
    numbers = np.concatenate([a, b], 1)
    starts = numbers[:, [0, digits]]
    between: NDArray[np.bool_] = (lines[:, [0, digits + 1, 2 * digits + 2]] == DELIMITER).all(1)
    answered = (lines[:, addition.question(digits) :] == expected).all(1)
    right: NDArray[np.bool_] = between & (numbers < 10).all(1) & (starts > 0).all(1) & answered
    return right
