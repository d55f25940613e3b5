"""Addition problems as minibatches. The loss counts only the answers, and the answers can be checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.data.datasets import addition
from charrnn.data.encode import TokenIds
from charrnn.data.minibatches import IGNORED
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.model import device_of, evaluating

DELIMITER, NEWLINE, OTHER = 10, 11, 12  # symbols besides the digits 0 to 9
BLOCK = 512  # problems answered at once


@dataclass(frozen=True, eq=False)
class Problems:
    """Problems in the layout of ``charrnn.data.datasets.addition``, in their order, ``batch_size`` to a minibatch.

    Each problem starts from a zero state. The loss counts only the answer: in y, the targets within the question are
    IGNORED. The last M % batch_size problems are in no minibatch, but ``measure`` includes them.
    """

    # (M, W) token ids of the lines, without the newlines
    lines: NDArray[np.unsignedinteger[Any]]
    # digits of each number to add
    digits: int
    batch_size: int
    vocabulary: Vocabulary
    carries = False

    def __len__(self) -> int:
        return len(self.lines) // self.batch_size

    @property
    def seq_length(self) -> int:
        """Number of time steps in a problem: the model reads every character except the last."""
        return addition.width(self.digits) - 1

    @property
    def predicted(self) -> int:
        """Number of time steps that count: those whose target belongs to the answer."""
        return addition.answer(self.digits)

    def in_equal_parts(self) -> Problems:
        """Return the same problems in the largest minibatches, up to BLOCK, that leave no problem out."""
        divisors = (size for size in range(1, BLOCK + 1) if len(self.lines) % size == 0)
        return replace(self, batch_size=max(divisors))

    def begins(self, k: int) -> bool:
        """Every minibatch starts from a zero state."""
        return True

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Return minibatch k: token ids and the ids that follow them, each int64 (T, B). Raises IndexError."""
        if not 0 <= k < len(self):
            raise IndexError(f"minibatch {k} of {len(self)}")
        lines = self._columns(k * self.batch_size, (k + 1) * self.batch_size)
        x, y = lines[:-1], lines[1:].clone()
        y[: addition.question(self.digits) - 1] = IGNORED
        return x, y

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the shares of right answers with greedy decoding: the model reads the question, then its own answer.

        ``digit_accuracy`` is the share of the true sums' digits that the model gets right. ``sum_accuracy`` is the
        share of problems answered without an error, including the closing -. One wrong character makes a sum wrong, so
        this is also the share of problems in which each correct character is the most probable one for the model,
        given the correct characters before it.
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
        """Return the model's greedy answers from the first character of the sum on: int64 (T, B), on the CPU.

        ``lines`` are int64 (W, B); the model reads only their questions.
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
        """Return the first ``count`` problems with the model's answers. Wrong ones look like ``-12-34-47-- wrong``."""
        lines = self._columns(0, count)
        answers = self.answers(model, lines)
        expected = lines[addition.question(self.digits) :]
        shown = []
        for line, own, true in zip(lines.T, answers.T, expected.T, strict=True):
            written = self.vocabulary.decode([*line[: -len(own)].tolist(), *own.tolist()]).replace("\n", "\\n")
            shown.append(written if torch.equal(own, true) else f"{written} wrong")
        return "\n".join(shown)

    def _columns(self, start: int, stop: int) -> Tensor:
        """Return lines side by side: int64 (W, B)."""
        return torch.from_numpy(self.lines[start:stop].T.astype(np.int64))


def read(name: str, ids: TokenIds, vocabulary: Vocabulary) -> Problems:
    """Return the problems in a text, one to a minibatch. ``ids`` are (N,); ``name`` is what messages call the text.

    The last line may end without a newline. Raises UserError if the text has no line, and for the first line that is
    not a problem with the right sum.
    """
    values = symbols(vocabulary)[np.asarray(ids)]
    if len(values) and values[-1] != NEWLINE:
        values = np.append(values, np.uint8(NEWLINE))
    ends = np.flatnonzero(values == NEWLINE)
    if not len(ends):
        raise UserError(f"{name} has no addition problem: make some with charrnn prepare addition")

    def line(n: int) -> str:
        return vocabulary.decode(np.asarray(ids[ends[n - 1] + 1 if n else 0 : ends[n]]).tolist())

    digits = addition.digits_of(line(0)[: 2**20])
    if not digits:
        raise UserError(
            f"{name}, line 1: {line(0)[:60]!r} is not an addition problem like those of "
            "charrnn prepare addition; correct or remove it"
        )
    wrong = first_wrong(values, ends, digits)
    if wrong is not None:
        raise UserError(f"{name}, line {wrong + 1:,}: {addition.fault(line(wrong), digits)}; correct or remove it")
    by_symbol = np.array([vocabulary.ids.get(code, 0) for code in vocabulary.split("0123456789-")], ids.dtype)
    return Problems(by_symbol[values.reshape(len(ends), -1)[:, :-1]], digits, 1, vocabulary)


def first_wrong(values: NDArray[np.uint8], ends: NDArray[np.intp], digits: int) -> int | None:
    """Return the index of the first line that is not a problem with the right sum; None if all lines are.

    ``values`` are the symbols of a text whose first line has the length of a problem with ``digits`` digits, and
    ``ends`` the positions of its newlines.
    """
    width = addition.width(digits)
    other_lengths = np.flatnonzero(np.diff(ends, prepend=-1) != width + 1)
    count = other_lengths[0] if len(other_lengths) else len(ends)
    wrong = np.flatnonzero(~are_problems(values[: count * (width + 1)].reshape(count, -1)[:, :-1], digits))
    first = [*wrong[:1], *other_lengths[:1]]
    return int(first[0]) if first else None


def symbols(vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """Return the symbol of each token id: the value of a digit, DELIMITER, NEWLINE or OTHER."""
    table = np.full(len(vocabulary), OTHER, np.uint8)
    for symbol, code in enumerate(vocabulary.split("0123456789-\n")):
        if code in vocabulary.ids:
            table[vocabulary.ids[code]] = symbol
    return table


def are_problems(lines: NDArray[np.uint8], digits: int) -> NDArray[np.bool_]:
    """Return whether each line of symbols, (M, W), is a problem with the right sum: bool (M,)."""
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
