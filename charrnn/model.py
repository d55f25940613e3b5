"""The contract that every model fulfils, on one page.

A model is a file ``models/NAME.py`` with a function

    def create(input_size, rnn_size, n_layers, dropout, *, own_option: Annotated[int, "help"] = 3) -> nn.Module

which builds an nn.Module that is a ``Model``. ``input_size`` is the number V of tokens in the vocabulary. Every
parameter after the ``*`` becomes a flag of ``charrnn train``. ``create`` raises ValueError for impossible values. The
other protocols are optional, and charrnn uses those that a model implements. ``charrnn.testing`` checks the contract.

A model keeps what it has learned in parameters and persistent buffers, which are what a checkpoint holds. Their number
and shapes never change. Everything else follows from the arguments of ``create``, and nothing is kept from one call to
the next. Random numbers come from the global generators of torch, numpy (``numpy.random``) and Python (``random``),
because -seed seeds these and a checkpoint holds them. A run of such a model gives the same result whether or not it is
stopped and resumed.

Shapes: T time steps, B rows of a minibatch, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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

        A state of None means zeros, and the shapes of the state are always the same. The model keeps nothing between
        calls, leaves its arguments unchanged, computes each row independently, and uses the dtype of its weights.
        Reading a text in two parts and carrying the state between them gives the same logits as reading it whole.
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


def problem_of_weights(model: nn.Module) -> str:
    """Return why the model's weights cannot be trained or saved, or ''."""
    weights = list(model.named_parameters())
    if not weights:
        return "it has no parameters; layers in a plain list are not found, those in a torch.nn.ModuleList are"
    for name, p in weights:
        if is_lazy(p) or p.layout != torch.strided or p.is_complex():
            kind = "has no shape yet" if is_lazy(p) else f"is {_described(p)}"
            return f"its parameter {name} {kind}; it must be a dense floating-point tensor"
    if not any(p.requires_grad for _, p in weights):
        return "none of its parameters needs a gradient; at least one must"
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_complex():
            return f"its state_dict has {name}, {_described(value)}; it must have only real tensors, such as buffers"
    return ""


def problem_of_output(returned: object, x: Tensor, input_size: int | None = None) -> str:
    """Return how ``forward``'s result for x, int64 (T, B), breaks the contract, or ''.

    Without ``input_size``, any number of logits at each time step will do.
    """
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        return f"forward returns {_described(returned)}; it must return the logits and a state, such as logits, (h,)"
    logits, state = returned
    size = input_size or (logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() else 1)
    shape = (*x.shape, size)
    if not _is_dense(logits) or not logits.is_floating_point() or logits.shape != shape:
        wanted = f"a floating-point tensor of shape (T, B, input_size), here {shape}"
        return f"forward returns {_described(logits)} as logits; they must be {wanted}"
    if torch.is_grad_enabled() and not logits.requires_grad:
        return "forward returns logits without a gradient; they must depend on the parameters, and not be detached"
    if not isinstance(state, tuple):
        return f"forward returns {_described(state)} as its state; it must be a tuple of tensors, such as (h,)"
    for part in state:
        if not _is_dense(part) or part.dim() < 2 or part.shape[-2] != x.shape[1]:
            wanted = f"must be a tensor with the rows of the minibatch, here {x.shape[1]}, on dimension -2"
            return f"forward returns a state with {_described(part)} in it; each part {wanted}"
    return ""


def problem_of_gradients(model: nn.Module) -> str:
    """Return how the gradients after a backward pass break the contract, or ''."""
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not gradients:
        return "the logits give none of its parameters a gradient; they must depend on at least one"
    for name, gradient in gradients:
        if not _is_dense(gradient):
            return f"the gradient of {name} is {_described(gradient)}; it must be dense: leave out sparse=True"
    return ""


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _described(value: object) -> str:
    """Describe a value for messages by its type, and a tensor also by its shape."""
    if isinstance(value, Tensor):
        sparse = "" if value.layout == torch.strided else "sparse "
        return f"a {sparse}tensor of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")


def copied(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model that shares nothing with it, or None if copy.deepcopy cannot make one."""
    try:
        copy: nn.Module = deepcopy(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # each kind of part that cannot be copied raises a different error
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
