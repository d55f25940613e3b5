"""Write text with a model, one token (character, byte or word) at a time, in one stream or many side by side.

All arithmetic is float64, whatever precision the model was trained in. Sums differ in their last bits between one row
and many, one thread and two, or a CPU and a GPU. In float32, about one draw in a few hundred thousand falls between two
such sums, and the text is different from there on. In float64, the gap is a billion times narrower, so a seed always
gives the same text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.model import NumpyStep, StepsInNumpy, copied, device_of, evaluating, stepper
from charrnn.sampling.choice import Choice, Floats, Ids

# tensors, or arrays if the model steps in numpy; dimension -2 is the batch
State = tuple[Any, ...]

BLOCK = 512  # time steps of prime text read at once
DRAWS = 64  # time steps whose random numbers are drawn at once


class Written(NamedTuple):
    """One token that was written."""

    # the number of its stream, from 0
    stream: int
    # a word includes the space before it
    text: str
    # natural logarithm of the model's own probability, before temperature, top_k and top_p; nan if not asked for
    log_probability: float


class Row:
    """A text in progress: one row of the batch."""

    def __init__(self, stream: int, prime: list[int], stop: list[int]) -> None:
        self.stream = stream
        self.last = prime[-1] if prime else None
        self.stop = stop
        self.recent = deque[int](maxlen=len(stop))
        self.ended = False

    def append(self, token: int) -> None:
        self.last = token
        if self.stop:
            self.recent.append(token)
            self.ended = list(self.recent) == self.stop


class Sampler:
    """Sample from a copy of the model; training it further does not affect the sampler."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, dtype: torch.dtype = torch.float64) -> None:
        self.model, self.mode = frozen_copy(model, dtype)
        self.vocabulary = vocabulary
        self.step = stepper(self.model)
        self.device = device_of(self.model)
        self.numpy_step: NumpyStep | None = None
        if isinstance(self.model, StepsInNumpy) and self.device.type == "cpu":
            self.numpy_step = self.model.numpy_step()

    def write(
        self,
        prime: str,
        length: int,
        choice: Choice,
        seeds: Sequence[int],
        stop: str = "",
        scored: bool = False,
    ) -> Iterator[Written]:
        """Continue the prime text in one stream for each seed, side by side.

        A stream ends after ``length`` tokens, or once it has written the text ``stop``. Its text depends only on its
        seed, not on the other streams. Without a prime text the first token is drawn uniformly, as in char-rnn.
        ``scored`` asks for log probabilities. Raises UserError for unknown tokens, before anything is yielded.
        """
        return self._write(self.encode(prime), length, choice, seeds, self.encode(stop, "the text of -stop"), scored)

    def _write(
        self, prime: list[int], length: int, choice: Choice, seeds: Sequence[int], stop: list[int], scored: bool
    ) -> Iterator[Written]:
        logits, state = self.read(prime, len(seeds))
        rows = [Row(stream, prime, stop) for stream in range(len(seeds))]
        token_text = self.vocabulary.token_text
        for left, draws in zip(reversed(range(length)), uniforms(seeds), strict=False):
            own = draws if len(rows) == len(seeds) else draws[[row.stream for row in rows]]
            ids, log_probabilities = self.pick(logits, choice, own, scored)
            for row, token, log_probability in zip(rows, ids.tolist(), log_probabilities, strict=True):
                yield Written(row.stream, token_text(token, row.last), log_probability)
                row.append(token)
            going = [k for k, row in enumerate(rows) if not row.ended] if stop else range(len(rows))
            if not left or not going:
                return
            if len(going) < len(rows):
                rows, ids, state = [rows[k] for k in going], ids[going], state and select(state, going)
            logits, state = self.advance(ids, state)

    def pick(self, logits: Floats | None, choice: Choice, draws: Floats, scored: bool) -> tuple[Ids, list[float]]:
        """Choose the next token of each row from its logits (N, V), or uniformly if there are none yet.

        Returns the token ids, int64 (N,), and their log probabilities; nan unless ``scored``.
        """
        if logits is None:
            size = len(self.vocabulary)
            return (draws * size).astype(np.int64), [-math.log(size)] * len(draws)
        ids = choice.choose(logits, draws)
        if not scored:
            return ids, [math.nan] * len(ids)
        return ids, (-surprises(logits)[np.arange(len(ids)), ids]).tolist()

    def encode(self, text: str, what: str = "the prime text") -> list[int]:
        """Return the token ids of a text. Raises UserError naming the unknown tokens."""
        if unknown := self.vocabulary.unknown_tokens(text):
            skip = ", or skip them with -unknown skip" if what == "the prime text" else ""
            raise self.vocabulary.unknown_error(what, unknown, f"remove them{skip}")
        return self.vocabulary.encode(text)

    def read(self, prime: list[int], streams: int) -> tuple[Floats | None, State | None]:
        """Return the logits (N, V) and state after the prime text, for N equal streams; twice None if it is empty."""
        if not prime:
            return None, None
        x = torch.tensor(prime, device=self.device)[:, None]
        state: State | None = None
        with self.mode():
            for block in x.split(BLOCK):
                logits, state = self.model(block, state)
        assert state is not None
        return on_cpu(logits[-1].expand(streams, -1)), self.for_step(select(state, [0] * streams))

    def advance(self, ids: Ids, state: State | None) -> tuple[Floats, State]:
        """Take one time step: return the logits (N, V) and the state after ``ids`` (N,), each stream's last token."""
        if self.numpy_step and state:
            scores, state = self.numpy_step(ids, state)
            return shifted(scores), state
        # entered for every token, because a suspended generator must not leave the mode switched on
        with self.mode():
            logits, state = self.step(torch.from_numpy(ids).to(self.device), state)
        return on_cpu(logits), self.for_step(state)

    def for_step(self, state: State) -> State:
        """Return a state of tensors as the next step takes it: as numpy arrays if the model steps in numpy."""
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
    """Continue the prime text by ``length`` tokens, yielding each as soon as it is generated.

    The draws come from a separate generator, so sampling never changes a training run. Raises UserError for an
    unknown token in the prime text, before anything is yielded.
    """
    written = Sampler(model, vocabulary).write(prime, length, Choice(temperature, greedy), [seed])
    return (token.text for token in written)


def frozen_copy(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Callable[[], Any]]:
    """Return a copy of the model in this precision and in evaluation mode, laid out for small matrix products.

    Also returns the context manager to call it in. A model that cannot be copied, or that works only in the precision
    it was trained in, is returned itself.
    """
    if device_of(model).type == "mps":
        dtype = torch.float32  # MPS has no float64
    copy = copied(model)
    if copy is None:
        return model, lambda: evaluating(model)
    try:
        copy.to(dtype).eval()
        _store_by_columns(copy)
        x = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
        with torch.inference_mode():
            stepper(copy)(x[0], copy(x, None)[1])
    except (RuntimeError, TypeError):
        return model, lambda: evaluating(model)
    return copy, torch.inference_mode


def _store_by_columns(model: nn.Module) -> None:
    """Store each weight matrix by columns, with the same values.

    The product of a single row with a matrix takes as long as reading the matrix, and reading by columns is faster.
    """
    if device_of(model).type == "cpu":
        for p in model.parameters():
            if p.dim() == 2:
                p.data = p.data.t().contiguous().t()


def select(state: State, rows: Sequence[int]) -> State:
    """Return the state of those rows of the batch, in that order; rows may repeat."""
    return tuple(part[..., rows, :] for part in state)


def concatenated(states: Iterable[State]) -> State:
    """Join the rows of several states into one state."""
    parts = zip(*states, strict=True)
    return tuple(np.concatenate(p, -2) if isinstance(p[0], np.ndarray) else torch.cat(p, -2) for p in parts)


def uniforms(seeds: Sequence[int]) -> Iterator[Floats]:
    """Yield numbers in [0, 1), float64 (N,), one for each seed, at every time step.

    A seed gives the same numbers on every device and for every thread count, whatever the other seeds are.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        block = [torch.rand(DRAWS, dtype=torch.float64, generator=generator) for generator in generators]
        yield from torch.stack(block, 1).numpy()


def on_cpu(logits: Tensor) -> Floats:
    """Return the shifted logits of a tensor on any device."""
    return shifted(logits.cpu().double().numpy())


def shifted(logits: NDArray[Any]) -> Floats:
    """Return logits (N, V) in float64 minus the largest of each row, so that exp cannot overflow.

    Raises UserError if they are not finite.
    """
    scores = logits.astype(np.float64, copy=False)
    top = np.maximum.reduce(scores, -1, keepdims=True)
    if not math.isfinite(top.sum()):
        raise UserError("the model's output is infinite or NaN: its weights are damaged; use an earlier checkpoint")
    result: Floats = scores - top
    return result


def surprises(logits: Floats) -> Floats:
    """Return -log softmax(logits) in nats, (N, V). The largest logit of each row must be 0."""
    result: Floats = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
    return result
