"""How much memory a training run takes, and what to say where there is less."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from charrnn.errors import UserError
from charrnn.options import TrainingOptions
from charrnn.precision import weights_dtype

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


def ran_out(error: BaseException) -> bool:
    """Whether this is how Python, numpy or torch say that memory has run out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text or "bad_alloc" in text


def capacity(device: torch.device) -> int:
    """All the memory of the device in bytes, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if sys.platform == "win32":
        return sys.maxsize  # not worth a way of its own: running out is explained as well
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    value, unit = count / 1e6, "MB"
    if value >= 1000:
        value, unit = value / 1000, "GB"
    return f"{value:,.1f} {unit}"
