"""The contract that every model fulfils, on one page.

A model is a file ``models/NAME.py`` with a function

    def create(input_size, rnn_size, n_layers, dropout, *, own_option: Annotated[int, "help"] = 3) -> nn.Module

which builds an nn.Module that is a ``Model``. ``input_size`` is the number V of tokens in the vocabulary. Every
parameter after the ``*`` becomes a flag of ``charrnn train``. ``create`` raises ValueError for impossible values. The
other protocols are optional, and charrnn uses those that a model implements. ``charrnn.testing`` checks the contract.

Shapes: T time steps, B rows of a minibatch, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# carried from one call of a model to the next: tensors with the rows on dimension -2, such as (layers, B, units)
State = tuple[Tensor, ...]
# one time step: token ids, int64 (B,), and a state, or None for zeros -> logits (B, V) and the next state
Step = Callable[[Tensor, State | None], tuple[Tensor, State]]
# the same on numpy arrays, always with a state
NumpyState = tuple[NDArray[Any], ...]
NumpyStep = Callable[[NDArray[np.int64], NumpyState], tuple[NDArray[Any], NumpyState]]


@runtime_checkable
class Model(Protocol):
    """Predicts the next token at every time step."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids, int64 (T, B); return the logits, (T, B, V), and the state after the last time step.

        A state of None means zeros. The model keeps nothing between calls, leaves its arguments unchanged, computes
        each row independently, and uses the dtype of its weights. Reading a text in two parts and carrying the state
        between them gives the same logits as reading it whole.
        """


@runtime_checkable
class Steps(Protocol):
    """Optional: a faster ``forward`` for one time step, used in sampling."""

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read token ids, int64 (B,); return the logits, (B, V), and the next state, as ``forward`` does for T = 1."""


@runtime_checkable
class StepsInNumpy(Protocol):
    """Optional: one time step in numpy, the fastest way to sample on a CPU."""

    def numpy_step(self) -> NumpyStep:
        """Return a function for one time step in evaluation mode, with the weights at the time of this call."""


@runtime_checkable
class DrawsMasks(Protocol):
    """Optional: dropout with masks that can be drawn once and used in many calls, as in Monte Carlo dropout."""

    def draw_masks(self, x: Tensor, generator: torch.Generator | None = None) -> Any:
        """Draw the masks that ``forward`` would draw for x in training mode, from the generator or torch's own.

        ``forward`` takes them as its keyword argument ``masks`` and applies them in evaluation mode too. Masks drawn
        for one time step can be used for any number of time steps.
        """


@runtime_checkable
class HasCompiledKernels(Protocol):
    """Optional: some of the model's kernels have a version that numba compiles, which may be faster on a CPU."""

    @property
    def has_compiled_kernels(self) -> bool: ...


def device_of(model: nn.Module) -> torch.device:
    """Return the device that holds the model's weights."""
    return next(model.parameters()).device


def copied(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model that shares nothing with it, or None if copy.deepcopy cannot make one."""
    try:
        copy: nn.Module = deepcopy(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # each kind of part that cannot be copied raises another error
        return None
    shared = any(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=False))
    return None if shared else copy


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def stepper(model: nn.Module) -> Step:
    """Return the model's own ``step``, or its ``forward`` for one time step if it has none."""
    if isinstance(model, Steps):
        return model.step

    def step(x: Tensor, state: State | None) -> tuple[Tensor, State]:
        logits, state = model(x[None], state)
        return logits[0], state

    return step
