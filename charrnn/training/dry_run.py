"""Measure the time and memory that a run would take, without training or writing anything."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from charrnn.compute import autocast
from charrnn.errors import size
from charrnn.evaluation.loss import summed_loss
from charrnn.kernels import backend
from charrnn.training.loop import Training
from charrnn.training.optimizer import tensors
from charrnn.training.setup import Setup

TIMED = 5  # iterations, after one to warm up
PATIENCE = 10.0  # seconds, after which no further iteration is timed


def added_product(to: Sequence[int], a: Sequence[int], b: Sequence[int], **rest: Any) -> int:
    """Return the number of operations of a matrix product added to an existing tensor, from the shapes."""
    return 2 * prod(a) * b[-1]


# torch counts the products that create a tensor, but not these
IN_PLACE = {torch.ops.aten.addmm_: added_product, torch.ops.aten.baddbmm_: added_product}


@dataclass(frozen=True)
class DryRun:
    """The time, memory and work of a run."""

    model: str
    device: str
    parameters: int
    # memory in bytes
    weights: int
    gradients: int
    optimizer: int
    activations: int
    # multiplications and additions in matrix products, per iteration
    flops: int
    # the word for tokens, such as characters
    units: str
    tokens_per_epoch: int
    iterations_per_epoch: int
    iterations: int
    # number of iterations timed; their median is seconds_per_iteration
    timed: int
    seconds_per_iteration: float

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds_per_iteration * self.iterations_per_epoch

    def rows(self) -> list[tuple[str, str]]:
        """Return pairs of a name and a value; the value says how it was obtained."""
        epoch = timedelta(seconds=round(self.seconds_per_epoch))
        whole = timedelta(seconds=round(self.seconds_per_iteration * self.iterations))
        return [
            ("model", f"{self.model} on {self.device}"),
            ("parameters", f"{self.parameters:,}"),
            ("memory: weights", f"{size(self.weights)}, counted"),
            ("memory: gradients", f"{size(self.gradients)}, counted"),
            ("memory: optimizer", f"{size(self.optimizer)}, measured after a step"),
            ("memory: activations", f"{size(self.activations)}, measured: kept for one backward pass"),
            ("work", f"{self.flops / 1e9:,.3f} GFLOP per iteration in matrix products, counted"),
            (self.units, f"{self.tokens_per_epoch:,} per epoch, in {self.iterations_per_epoch:,} iterations"),
            (
                "time",
                f"{1000 * self.seconds_per_iteration:,.1f} ms per iteration, the median of {self.timed}; "
                f"{epoch} per epoch, {whole} for {self.iterations:,} iterations, without validations",
            ),
        ]


def dry_run(setup: Setup) -> DryRun:
    """Measure a few iterations of a run, without keeping their results. Raises UserError as training would."""
    train, options = setup.splits["train"], setup.options
    # like the run, but no iteration is the last one, and none is validated
    tried = replace(options, max_epochs=1e9, lr_schedule="constant", early_stop=0, accurate_gpu_timing=True)
    with setup.enough_memory():
        trial = Training(setup.model, train, None, tried)
        activations, flops = kept_for_backward(trial), matrix_products(trial)
        times = timed(trial)
    return DryRun(
        model=options.model,
        device=str(trial.device),
        parameters=setup.parameters,
        weights=bytes_of(setup.model.parameters()),
        gradients=bytes_of(trial.parameters),
        optimizer=bytes_of(tensors(trial.optimizer)),
        activations=activations,
        flops=flops,
        units=setup.vocabulary.units,
        tokens_per_epoch=len(train) * train.batch_size * train.seq_length,
        iterations_per_epoch=len(train),
        iterations=setup.training.iterations,
        timed=len(times),
        seconds_per_iteration=median(times),
    )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def timed(trial: Training) -> list[float]:
    """Return the seconds that each of a few iterations takes."""
    started = time.monotonic()
    times = []
    for record in islice(trial.run(), 1 + TIMED):
        times.append(record.seconds)
        if len(times) > 1 and time.monotonic() - started > PATIENCE:
            break
    return times[1:]


def kept_for_backward(trial: Training) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, besides the weights."""
    weights = {p.untyped_storage().data_ptr() for p in trial.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective = one_objective(trial)
    del objective
    return sum(kept.values())


def matrix_products(trial: Training) -> int:
    """Return the floating-point operations of the matrix products in one iteration, forward and backward."""
    with plain_operations(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        one_objective(trial).backward()
    trial.model.zero_grad()
    return int(counter.get_total_flops())


@contextmanager
def plain_operations() -> Iterator[None]:
    """Compute without fused recurrent layers and compiled kernels, whose products cannot be counted."""
    with backend.torch_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about TF32 on Intel's GPUs, which the first switch also sets
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def one_objective(trial: Training) -> Tensor:
    """Return the loss of the first minibatch."""
    trial.model.train()
    x, y = (part.to(trial.device) for part in trial.train.batch(0))
    with autocast(trial.options.precision, trial.device):
        return summed_loss(trial.model(x, None)[0], y)
