"""Writing text with a model, one token (character or word) at a time, in one stream or many side by side.

All arithmetic is float64, whatever the model was trained in. Sums over one row and over many, on one thread and on
two, on a CPU and on a GPU come out different in their last bits, and in float32 every few hundred thousand characters
a draw falls between two such sums: the text then goes another way. In float64 the gap is a billion times narrower, so
that a seed means one text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.model import device_of, evaluating, stepper
from charrnn.sampling.choice import Choice, Floats, Numbers

State = tuple[Any, ...]  # of tensors, or of arrays where the model steps in numpy; the batch on dimension -2


NumpyStep = Callable[[Numbers, State], tuple[NDArray[Any], State]]


BLOCK = 512  # time steps of a prime text that are read at once


DRAWS = 64  # time steps whose random numbers are drawn at once


class Written(NamedTuple):
    """One more token: of which stream, from 0, its text, and its natural log probability under the model itself.

    text: a word has the space before it in it. The probability is that before temperature, top_k and top_p; nan where
    it was not asked for.
    """

    stream: int
    text: str
    log_probability: float


class Sampler:
    """Writes with a model as it is now, untouched by what becomes of the model afterwards."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, dtype: torch.dtype = torch.float64) -> None:
        self.model, self.mode = still(model, dtype)
        self.vocabulary = vocabulary
        self.step = stepper(self.model)
        self.device = device_of(self.model)
        in_numpy: Callable[[], NumpyStep] | None = getattr(self.model, "numpy_step", None)
        self.numpy_step = in_numpy() if in_numpy and self.device.type == "cpu" else None

    def write(
        self,
        prime: str,
        length: int,
        choice: Choice,
        seeds: Sequence[int],
        stop: str = "",
        scored: bool = False,
    ) -> Iterator[Written]:
        """Continue the prime text in one stream for each seed, the streams side by side.

        A stream ends after ``length`` tokens, or once it has written the text ``stop``. What it writes follows
        from its seed alone, not from how many are beside it. Without a prime text the first character is drawn
        uniformly, as in char-rnn. scored: whether log probabilities are wanted. Raises UserError, before anything is
        yielded, for characters that the vocabulary lacks.
        """
        return self._write(self.encode(prime), length, choice, seeds, self.encode(stop, "the text of -stop"), scored)

    def _write(
        self, prime: list[int], length: int, choice: Choice, seeds: Sequence[int], end: list[int], scored: bool
    ) -> Iterator[Written]:
        logits, state = self.read(prime, len(seeds))
        alive = list(range(len(seeds)))
        recent = [deque[int](maxlen=len(end)) for _ in seeds]
        last: list[int | None] = [prime[-1] if prime else None] * len(seeds)
        piece = self.vocabulary.piece
        for left, draws in zip(reversed(range(length)), uniforms(seeds), strict=False):
            own = draws if len(alive) == len(seeds) else draws[alive]
            if logits is None:
                size = len(self.vocabulary)
                chosen = (own * size).astype(np.int64)
                nats = [math.log(size)] * len(alive)
            else:
                chosen = choice.choose(logits, own)
                nats = surprises(logits)[range(len(alive)), chosen].tolist() if scored else [math.nan] * len(alive)
            ended = set()
            for k, number, cost in zip(alive, chosen.tolist(), nats, strict=True):
                if end:
                    recent[k].append(number)
                    if list(recent[k]) == end:
                        ended.add(k)
                yield Written(k, piece(number, last[k]), -cost)
                last[k] = number
            if not left or len(ended) == len(alive):
                return
            if ended:
                rows = [row for row, k in enumerate(alive) if k not in ended]
                alive = [alive[row] for row in rows]
                chosen = chosen[rows]
                state = state and select(state, rows)
            logits, state = self.advance(chosen, state)

    def encode(self, text: str, what: str = "the prime text") -> list[int]:
        """The numbers of a text's characters. Raises UserError that names the unknown ones."""
        if missing := self.vocabulary.unknown(text):
            skip = ", or -unknown skip does" if what == "the prime text" else ""
            raise UserError(
                f"{what} has {', '.join(missing[:20])}{' ...' if len(missing) > 20 else ''}, "
                f"which the model's training text never had: leave it out{skip}"
            )
        return self.vocabulary.encode(text)

    def read(self, prime: list[int], streams: int) -> tuple[Floats | None, State | None]:
        """The logits (N, V) and the state after a prime text, the same for N streams; None without a text."""
        if not prime:
            return None, None
        x = torch.tensor(prime, device=self.device)[:, None]
        state: State | None = None
        with self.mode():
            for block in x.split(BLOCK):
                logits, state = self.model(block, state)
        assert state is not None
        return checked(logits[-1].expand(streams, -1)), self.kept(select(state, [0] * streams))

    def advance(self, chosen: Numbers, state: State | None) -> tuple[Floats, State]:
        """One time step: the logits (N, V) and the state after each stream's next character."""
        if self.numpy_step and state:
            scores, state = self.numpy_step(chosen, state)
            return shifted(scores), state
        # entered anew at each character: a generator must not leave its mode behind while it waits
        with self.mode():
            logits, state = self.step(torch.from_numpy(chosen).to(self.device), state)
        return checked(logits), self.kept(state)

    def kept(self, state: State) -> State:
        """A state as the next step wants it: in numpy's arrays where the model steps in numpy."""
        return tuple(part.numpy() for part in state) if self.numpy_step else state


def sample(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime: str = "",
    length: int = 2000,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int = 123,
) -> Iterator[str]:
    """Write ``length`` tokens that continue the prime text, each yielded as soon as it is made.

    The draws come from a generator of their own, so that sampling never changes a training run. Raises UserError for
    a character of the prime text that the vocabulary lacks, before anything is yielded.
    """
    written = Sampler(model, vocabulary).write(prime, length, Choice(temperature, greedy), [seed])
    return (character.text for character in written)


def known(text: str, vocabulary: Vocabulary, report: Callable[[str], None]) -> str:
    """The text without the characters that the vocabulary lacks, which are reported."""
    missing = vocabulary.unknown(text)
    if not missing:
        return text
    report(f"left out of the prime text, as the model's training text never had it: {', '.join(missing)}")
    lacking = set(vocabulary.lacks(vocabulary.split(text)))
    return vocabulary.decode(vocabulary.number(code) for code in vocabulary.split(text) if code not in lacking)


def still(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Callable[[], Any]]:
    """A copy of the model in that precision, in evaluation mode and laid out for small products; and how to call it.

    A model that cannot be copied, or that insists on the precision it was trained in, is used as it is.
    """
    if device_of(model).type == "mps":
        dtype = torch.float32  # all it has
    try:
        copy = deepcopy(model).to(dtype).eval()
        _lay_out(copy)
        x = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
        with torch.inference_mode():
            stepper(copy)(x[0], copy(x, None)[1])
    except (RuntimeError, TypeError):
        return model, lambda: evaluating(model)
    return copy, torch.inference_mode


def _lay_out(model: nn.Module) -> None:
    """Store each weight matrix by columns, its values as they were.

    With a single row the product with a matrix takes as long as reading it, and by columns that goes faster.
    """
    if device_of(model).type == "cpu":
        for p in model.parameters():
            if p.dim() == 2:
                p.data = p.data.t().contiguous().t()


def select(state: State, rows: list[int]) -> State:
    """The state of those rows of the batch, in that order; a row may come more than once."""
    return tuple(part[..., rows, :] for part in state)


def concatenated(states: Iterable[State]) -> State:
    """The state of all rows of those states, one after the other."""
    parts = zip(*states, strict=True)
    return tuple(np.concatenate(p, -2) if isinstance(p[0], np.ndarray) else torch.cat(p, -2) for p in parts)


def uniforms(seeds: Sequence[int]) -> Iterator[Floats]:
    """Numbers in [0, 1), float64 (N,), one for each seed at every time step.

    Those of a seed are the same on every device and thread count, whatever the other seeds are.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        block = [torch.rand(DRAWS, dtype=torch.float64, generator=generator) for generator in generators]
        yield from torch.stack(block, 1).numpy()


def checked(logits: Tensor) -> Floats:
    """What shifted gives, of a tensor on any device."""
    return shifted(logits.cpu().double().numpy())


def shifted(logits: NDArray[Any]) -> Floats:
    """Logits (N, V) in float64 less the greatest of each row, as exp takes them without overflow.

    Raises UserError where they are no numbers.
    """
    scores = logits.astype(np.float64, copy=False)
    top = np.maximum.reduce(scores, -1, keepdims=True)
    if not math.isfinite(top.sum()):
        raise UserError("the model's output is not a number: its weights are broken; use an earlier checkpoint")
    result: Floats = scores - top
    return result


def surprises(logits: Floats) -> Floats:
    """-log softmax(logits), in nats: (N, V). The greatest logit of each row is 0."""
    result: Floats = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
    return result
