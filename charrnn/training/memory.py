"""How much memory a training run takes, and what to say where there is less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from charrnn.compute import capacity, ran_out, weights_dtype
from charrnn.errors import UserError, size
from charrnn.settings.training import TrainingOptions

ADVICE = "lower -rnn_size, -num_layers, -batch_size or -seq_length"


COPIES = {"sgd": 2, "rmsprop": 3, "adam": 4}  # of the weights: themselves, their gradient, the optimizer's means


# per layer, step and row: gates, states and what the backward pass keeps of them, in units of rnn_size. An estimate
# that suits an LSTM; a deeper cell takes more
KEPT = 12


def needed(model: nn.Module, input_size: int, options: TrainingOptions) -> tuple[int, int]:
    """Bytes for the weights with gradient and optimizer, and about as many for a minibatch's activations."""
    itemsize = torch.empty(0, dtype=weights_dtype(options.precision)).element_size()
    weights = sum(p.numel() for p in model.parameters()) * COPIES[options.optimizer]
    per_character = 4 * input_size + KEPT * options.num_layers * options.rnn_size
    return weights * itemsize, options.batch_size * options.seq_length * per_character * itemsize


def check(model: nn.Module | None, options: TrainingOptions, device: torch.device) -> None:
    """Raises UserError where the weights alone are more than the device could ever hold.

    model: on torch's meta device, or None where it cannot be built there.
    """
    if model is None:
        return
    weights, activations = needed(model, 1, options)
    there = capacity(device)
    if weights > there:
        raise UserError(f"{explanation(weights, activations)}, and there are {size(there)} in all: {ADVICE}")


@contextmanager
def explained(model: nn.Module | None, input_size: int, options: TrainingOptions) -> Iterator[None]:
    """Turn an out-of-memory error, of the CPU or a GPU, into a UserError that tells what the run needs."""
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
        f"({size(weights)} for weights, gradient and optimizer, {size(activations)} for a minibatch)"
    )
