"""The loss of a model over a split or any text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.data.minibatches import Minibatches
from charrnn.data.vocabulary import bits, perplexity
from charrnn.model import State, device_of, evaluating

BLOCK = 512  # time steps of a text that are read at once, where the logits take no more than LOGITS numbers


LOGITS = 1 << 25


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
