"""Estimate the memory that a training run needs, and explain out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from charrnn.compute import capacity, ran_out, weights_dtype
from charrnn.errors import UserError, size
from charrnn.settings.training import TrainingOptions
from charrnn.training.optimizer import RULES

ADVICE = "lower -rnn_size, -num_layers, -batch_size or -seq_length"

# activations per layer, time step and row, in units of rnn_size: gates, states and what the backward pass keeps.
# An estimate that suits an LSTM; a deeper cell takes more
ACTIVATIONS = 12


def needed(model: nn.Module, input_size: int, options: TrainingOptions) -> tuple[int, int]:
    """Return the bytes for weights, gradients and optimizer state, and the estimated bytes for activations."""
    itemsize = torch.empty(0, dtype=weights_dtype(options.precision)).element_size()
    per_weight = 2 + RULES[options.optimizer].values_per_weight
    weights = sum(p.numel() for p in model.parameters()) * per_weight
    per_token = 4 * input_size + ACTIVATIONS * options.num_layers * options.rnn_size
    return weights * itemsize, options.batch_size * options.seq_length * per_token * itemsize


def check(model: nn.Module | None, options: TrainingOptions, device: torch.device) -> None:
    """Raise UserError if the weights alone need more memory than the device has.

    ``model`` is a skeleton on torch's meta device; if it is None, nothing is checked.
    """
    if model is None:
        return
    weights, activations = needed(model, 1, options)
    available = capacity(device)
    if weights > available:
        raise UserError(f"{explanation(weights, activations)}, but the device has only {size(available)}: {ADVICE}")


@contextmanager
def explained(model: nn.Module | None, input_size: int, options: TrainingOptions) -> Iterator[None]:
    """Turn an out-of-memory error, of the CPU or a GPU, into a UserError that says what the run needs."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        reason = f": {explanation(*needed(model, input_size, options))}" if model else ""
        raise UserError(f"out of memory{reason}: {ADVICE}") from None


def explanation(weights: int, activations: int) -> str:
    return (
        f"this run needs about {size(weights + activations)} "
        f"({size(weights)} for weights, gradients and optimizer, {size(activations)} for a minibatch)"
    )
