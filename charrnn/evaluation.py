"""The loss of a model over a split or any text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]


class Minibatches(Protocol):
    """What a model is trained or evaluated on; charrnn.data.Split is the usual one."""

    @property
    def batch_size(self) -> int: ...

    @property
    def seq_length(self) -> int: ...

    @property
    def carries(self) -> bool: ...

    def __len__(self) -> int: ...

    def batch(self, k: int, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    loss: mean nats per character; characters: how many were predicted.
    """

    loss: float
    characters: int

    @classmethod
    def of(cls, nats: Tensor) -> Score:
        """The score of characters from the loss of each."""
        return cls(nats.mean().item(), nats.numel())

    @property
    def bpc(self) -> float:
        """Bits per character."""
        return self.loss / math.log(2)

    @property
    def ppl(self) -> float:
        """Perplexity per character."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The objective: the sum over time of the batch mean of the cross-entropy, in nats.

    logits: float (T, B, V); y: int64 (T, B). As in char-rnn and the RHN program the sum over time is not
    divided by T, so that clipping bounds and learning rates mean what they meant there.
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
    """The score over all minibatches of a split, from a zero state that is carried from one to the next."""
    device = device_of(model)
    state: State | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for k in range(len(split)):
            x, y = split.batch(k)
            logits, state = model(x.to(device), state)
            total += summed_loss(logits, y.to(device))
    loss = total.item() / (len(split) * split.seq_length)
    return Score(loss, len(split) * split.seq_length * split.batch_size)


def evaluate_tokens(model: nn.Module, tokens: Tensor, block: int = 512) -> Score:
    """The score of one stream of characters: each but the first is predicted from all before it.

    tokens: int64 (N,), N at least 2; read in blocks of that many steps, the state carried between them.
    """
    with evaluating(model):
        return Score.of(losses(model, tokens[:-1, None], tokens[1:, None], block))


def losses(model: nn.Module, x: Tensor, y: Tensor, block: int = 512, **masks: Any) -> Tensor:
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
