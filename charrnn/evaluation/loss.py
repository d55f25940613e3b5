"""The loss of a model over a split or any text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.units import bits, perplexity

State = tuple[Tensor, ...]
BLOCK = 512  # time steps of a text that are read at once, where the logits take no more than LOGITS numbers
LOGITS = 1 << 25
IGNORED = -100  # stands in y for a character that is read, not predicted: torch's own sign


class Minibatches(Protocol):
    """What a model is trained or evaluated on; charrnn.data.Split is the usual one.

    predicted: how many of a minibatch's time steps count, the others being IGNORED in y. begins: whether minibatch k is
    read from a zero state, not from the one that the last one ended in. measure: what else than the loss tells how
    good a model is, by name.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def seq_length(self) -> int: ...

    @property
    def predicted(self) -> int: ...

    @property
    def carries(self) -> bool: ...

    def __len__(self) -> int: ...

    def begins(self, k: int, /) -> bool: ...

    def batch(self, k: int, /) -> tuple[Tensor, Tensor]: ...

    def measure(self, model: nn.Module, /) -> dict[str, float]: ...


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    loss: mean nats per character, or per word; characters: how many were predicted; measures: what else was measured,
    by name.
    """

    loss: float
    characters: int
    measures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, nats: Tensor) -> Score:
        """The score of characters from the loss of each."""
        return cls(nats.mean().item(), nats.numel())

    @property
    def bpc(self) -> float:
        """Bits per character."""
        return bits(self.loss)

    @property
    def ppl(self) -> float:
        """Perplexity per character, or per word."""
        return perplexity(self.loss)


def summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The objective: the sum over time of the batch mean of the cross-entropy, in nats.

    logits: float (T, B, V); y: int64 (T, B), where what is IGNORED adds nothing. As in char-rnn and the RHN program the
    sum over time is not divided by T, so that clipping bounds and learning rates mean what they meant there.
    """
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode of before afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, split: Minibatches) -> Score:
    """The score over all minibatches of a split, the state carried on save where a minibatch begins anew."""
    device = device_of(model)
    state: State | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for k in range(len(split)):
            x, y = split.batch(k)
            logits, state = model(x.to(device), None if split.begins(k) else state)
            total += summed_loss(logits, y.to(device))
    steps = len(split) * split.predicted
    return Score(total.item() / steps, steps * split.batch_size, split.measure(model))


def evaluate_tokens(model: nn.Module, tokens: Tensor, block: int = BLOCK) -> Score:
    """The score of one stream of characters: each but the first is predicted from all before it.

    tokens: int64 (N,), N at least 2; read in blocks of that many steps, the state carried between them.
    """
    with evaluating(model):
        return Score.of(losses(model, tokens[:-1, None], tokens[1:, None], block))


def steps_at_once(batch_size: int, vocabulary_size: int) -> int:
    """In how long blocks to read rows side by side: BLOCK steps, or fewer where the vocabulary is large."""
    return max(1, min(BLOCK, LOGITS // (batch_size * vocabulary_size)))


def losses(model: nn.Module, x: Tensor, y: Tensor, block: int = BLOCK, **masks: Any) -> Tensor:
    """The cross-entropy in nats of each of y, float64 (N, B), in the model's present mode.

    x: int64 (N, B), the characters of B rows; y: int64 (N, B), those that follow them. Rows are read in blocks of that
    many steps, the state carried between them.
    """
    device = device_of(model)
    state: State | None = None
    nats = []
    for some_x, some_y in zip(x.split(block), y.to(device).split(block), strict=True):
        logits, state = model(some_x.to(device), state, **masks)
        nats.append(F.cross_entropy(logits.flatten(0, 1), some_y.flatten(), reduction="none").double())
    return torch.cat(nats).view(x.shape)
