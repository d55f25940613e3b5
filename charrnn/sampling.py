"""Writing text with a model, one character at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from charrnn.errors import UserError
from charrnn.evaluation import State, device_of, evaluating
from charrnn.vocabulary import Vocabulary

Step = Callable[[Tensor, State | None], tuple[Tensor, State]]


def sample(
    model: nn.Module,
    vocabulary: Vocabulary,
    prime: str = "",
    length: int = 2000,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int = 123,
) -> Iterator[str]:
    """Write ``length`` characters that continue the prime text, each yielded as soon as it is made.

    Characters are drawn from softmax(logits / temperature), or are the most probable where greedy. Without
    a prime text the first character is drawn uniformly, as in char-rnn. The draws come from a generator of
    their own, so that sampling never changes a training run. Raises UserError for a character of the prime
    text that the vocabulary lacks, before anything is yielded.
    """
    if missing := vocabulary.unknown(prime):
        raise UserError(
            f"the prime text has {', '.join(missing)}, which the model's training text never had: leave it out"
        )
    numbers = _write(model, vocabulary.encode(prime), len(vocabulary), temperature, greedy, uniforms(seed))
    return (vocabulary.decode([number]) for number in islice(numbers, length))


def _write(
    model: nn.Module, prime: list[int], size: int, temperature: float, greedy: bool, draws: Iterator[float]
) -> Iterator[int]:
    """The numbers of the characters that go on from a prime text, without end."""
    with evaluating(model):
        logits, state = _read(model, prime)
    step = stepper(model)
    while True:
        number = _choose(logits, temperature, greedy, draws, size)
        yield number
        # entered anew at each character: a generator must not leave its mode behind while it waits
        with evaluating(model):
            logits, state = step(torch.tensor([number], device=device_of(model)), state)


def stepper(model: nn.Module) -> Step:
    """The model's own ``step`` where it has one, else its forward over a single time step."""
    own: Step | None = getattr(model, "step", None)
    if own is not None:
        return own

    def step(x: Tensor, state: State | None) -> tuple[Tensor, State]:
        logits, state = model(x[None], state)
        return logits[0], state

    return step


def uniforms(seed: int) -> Iterator[float]:
    """Numbers in [0, 1), float64, the same for the same seed on every device and thread count."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(256, dtype=torch.float64, generator=generator).tolist()


def _read(model: nn.Module, prime: list[int]) -> tuple[Tensor | None, State | None]:
    """The logits (1, V) after the prime text, and the state; None and None where there is no text."""
    if not prime:
        return None, None
    x = torch.tensor(prime, device=device_of(model))[:, None]
    logits, state = model(x, None)
    return logits[-1], state


def _choose(logits: Tensor | None, temperature: float, greedy: bool, draws: Iterator[float], size: int) -> int:
    if logits is None:
        return int(next(draws) * size)
    scores = logits[0].cpu().numpy()
    if not math.isfinite(scores.sum()):
        raise UserError("the model's output is not a number: its weights are broken; use an earlier checkpoint")
    if greedy:
        return int(scores.argmax())
    scaled = (scores.astype(np.float64) - scores.max()) / temperature
    cumulative = np.exp(scaled).cumsum()
    # the first place where the cumulative sum passes the draw: a character of probability 0 is never chosen
    return min(int(cumulative.searchsorted(next(draws) * cumulative[-1], side="right")), size - 1)
