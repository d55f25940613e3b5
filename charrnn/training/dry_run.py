"""What a training run would take, found out without training anything or writing anything."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from charrnn.settings.resolve import Configuration
from charrnn.training.run import Report, Run

TIMED = 5  # iterations, after one that is not counted


PATIENCE = 10.0  # seconds, after which fewer will do


def added_product(to: Sequence[int], a: Sequence[int], b: Sequence[int], **rest: Any) -> int:
    """The operations of a product that is added to what is there, by the shapes."""
    return 2 * prod(a) * b[-1]


# torch counts the products that make a new tensor, but not these
IN_PLACE = {torch.ops.aten.addmm_: added_product, torch.ops.aten.baddbmm_: added_product}


@dataclass(frozen=True)
class DryRun:
    """Memory in bytes, time in seconds; flops: multiplications and additions of matrix products, per iteration."""

    model: str
    device: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    flops: int
    units: str
    characters_per_epoch: int
    iterations_per_epoch: int
    iterations: int
    timed: int
    seconds_per_iteration: float

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds_per_iteration * self.iterations_per_epoch

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of every figure, and how it was come by."""
        epoch = timedelta(seconds=round(self.seconds_per_epoch))
        whole = timedelta(seconds=round(self.seconds_per_iteration * self.iterations))
        return [
            ("model", f"{self.model} on {self.device}"),
            ("parameters", f"{self.parameters:,}"),
            ("memory: weights", f"{size(self.weights)}, counted"),
            ("memory: gradients", f"{size(self.gradients)}, counted"),
            ("memory: optimizer", f"{size(self.optimizer)}, measured after a step"),
            ("memory: activations", f"{size(self.activations)}, measured: what one backward pass keeps"),
            ("work", f"{self.flops / 1e9:,.3f} GFLOP per iteration in matrix products, counted"),
            (
                self.units,
                f"{self.characters_per_epoch:,} per epoch, in {self.iterations_per_epoch:,} iterations",
            ),
            (
                "time",
                f"{1000 * self.seconds_per_iteration:,.1f} ms per iteration, the median of {self.timed}; "
                f"{epoch} per epoch, {whole} for {self.iterations:,} iterations, validations aside",
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds_per_epoch": self.seconds_per_epoch}


def dry_run(configuration: Configuration, report: Report) -> DryRun:
    """Build the run, try a few iterations, and forget them. Raises UserError as training would."""
    run = Run(configuration, report, keep=False)
    training = run.training
    split = training.train
    planned = training.iterations
    # so many more that none is the last, which would be validated
    training.iterations += 10 * TIMED
    training.options = replace(training.options, eval_val_every=10**9, early_stop=0)
    with run.enough_memory():
        activations, flops = kept_for_backward(run), matrix_products(run)
        times = timed(run)
    optimizer = sum(
        value.numel() * value.element_size()
        for state in training.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
    return DryRun(
        model=run.options.model,
        device=str(training.device),
        parameters=run.parameters,
        weights=weights,
        gradients=sum(p.numel() * p.element_size() for p in training.parameters),
        optimizer=optimizer,
        activations=activations,
        flops=flops,
        units=run.vocabulary.units,
        characters_per_epoch=len(split) * split.batch_size * split.seq_length,
        iterations_per_epoch=len(split),
        iterations=planned,
        timed=len(times),
        seconds_per_iteration=median(times),
    )


def timed(run: Run) -> list[float]:
    """Seconds of each of a few iterations of the training loop itself."""
    run.training.in_flight = 1  # wait for the device each time
    started = time.monotonic()
    times = []
    for record in islice(run.training.run(), 1 + TIMED):
        times.append(record.seconds)
        if len(times) > 1 and time.monotonic() - started > PATIENCE:
            break
    return times[1:]


def kept_for_backward(run: Run) -> int:
    """Bytes of all that a forward pass keeps for the backward pass, the weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective = one_objective(run)
    del objective
    return sum(kept.values())


def matrix_products(run: Run) -> int:
    """Floating-point operations of the matrix products of one iteration, forward and backward."""
    with plain_operations(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        one_objective(run).backward()
    run.model.zero_grad()
    return int(counter.get_total_flops())


@contextmanager
def plain_operations() -> Iterator[None]:
    """Without the fused recurrent layers and compiled kernels, in which no single product can be counted."""
    with backend.torch_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about TF32 on GPUs of Intel, which the first switch also sets
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def one_objective(run: Run) -> Tensor:
    run.model.train()
    x, y = (part.to(run.training.device) for part in run.training.train.batch(0))
    with autocast(run.options.precision, run.training.device):
        return summed_loss(run.model(x, None)[0], y)
