"""What a model is: its state, its device, its one time step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


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


Step = Callable[[Tensor, State | None], tuple[Tensor, State]]


def stepper(model: nn.Module) -> Step:
    """The model's own ``step`` where it has one, else its forward over a single time step."""
    own: Step | None = getattr(model, "step", None)
    if own is not None:
        return own

    def step(x: Tensor, state: State | None) -> tuple[Tensor, State]:
        logits, state = model(x[None], state)
        return logits[0], state

    return step
