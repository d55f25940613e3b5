"""The loss of a model on a split or on any text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn.data import vocabulary
from charrnn.data.minibatches import Minibatches
from charrnn.model import State, device_of, evaluating

BLOCK = 512  # time steps of a text read at once, as long as the logits have at most LOGITS elements
LOGITS = 1 << 25


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    # mean, in nats per token
    loss: float
    # number of predicted tokens
    tokens: int
    # further measures of quality, by name
    measures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, nats: Tensor) -> Score:
        """Return the score of tokens, given the loss of each in nats."""
        return cls(nats.mean().item(), nats.numel())

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return vocabulary.perplexity(self.loss)


def summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the training objective: the cross-entropy in nats, summed over time and averaged over the batch.

    ``logits`` are (T, B, V); ``y`` is int64 (T, B), and IGNORED targets add nothing. As in char-rnn and the RHN
    program, the sum over time is not divided by T, so clipping bounds and learning rates have the same effect as there.
    """
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]


def evaluate(model: nn.Module, split: Minibatches) -> Score:
    """Return the score over all minibatches of a split.

    The state is carried from each minibatch to the next, unless the next starts from a zero state.
    """
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


def steps_at_once(batch_size: int, vocabulary_size: int) -> int:
    """Return the number of time steps to read at once: BLOCK, or fewer if the vocabulary is large."""
    return max(1, min(BLOCK, LOGITS // (batch_size * vocabulary_size)))


def losses(model: nn.Module, x: Tensor, y: Tensor, block: int = BLOCK, **masks: Any) -> Tensor:
    """Return the cross-entropy of each target in nats, float64 (N, B), in the model's current mode.

    ``x``, int64 (N, B), holds B rows of token ids, and ``y``, int64 (N, B), the ids that follow them. Rows are read
    in blocks of ``block`` time steps, and the state is carried between blocks.
    """
    device = device_of(model)
    state: State | None = None
    nats = []
    for block_x, block_y in zip(x.split(block), y.to(device).split(block), strict=True):
        logits, state = model(block_x.to(device), state, **masks)
        nats.append(F.cross_entropy(logits.flatten(0, 1), block_y.flatten(), reduction="none").double())
    return torch.cat(nats).view(x.shape)
