"""The models that are measured, with their sizes, and a text of random characters to train them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import product
from benchmarks.networks import plain
from charrnn import registry
from charrnn.compute import keep_freed_memory
from charrnn.data.minibatches import Split
from charrnn.kernels import backend
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training

V = 65  # characters of tinyshakespeare
BATCH = SEQUENCE = 50


@dataclass(frozen=True)
class Subject:
    """A model and its sizes. ``networks`` uses the same names: the model's, followed by an option if any."""

    name: str
    size: int
    layers: int

    @property
    def options(self) -> dict[str, Any]:
        model, _, own = self.name.partition(" ")
        return {"reset_after": True} if own else {"depth": 5} if model == "rhn" else {}

    def __str__(self) -> str:
        return f"{self.name} {self.layers}x{self.size}"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return registry.find(self.name.partition(" ")[0]).create(V, self.size, self.layers, 0.0, **self.options)


COMPILED = ("gru", "rnn", "rhn")
NAMES = ("lstm", "gru", "gru -reset_after 1", "rnn", "grid_lstm", "rhn")


def subjects(size: int) -> list[Subject]:
    return [Subject(name, size, 1 if name == "rhn" else 2) for name in NAMES]


def split(batch_size: int = BATCH, seq_length: int = SEQUENCE, minibatches: int = 1000) -> Split:
    """Return random characters in char-rnn's layout."""
    tokens = np.random.default_rng(0).integers(0, V, batch_size * seq_length * minibatches, dtype=np.uint8)
    return Split(tokens, minibatches * seq_length, 0, minibatches, batch_size, seq_length, carries=True)


def training(model: nn.Module, minibatches: Split) -> Callable[[], Any]:
    """Return a call that runs one iteration of the real training loop, in a process set up like ``charrnn train``."""
    keep_freed_memory()
    options = TrainingOptions(max_epochs=1_000_000)
    run = Training(model, minibatches, None, options).run()
    return lambda: next(run)


def kernels_of(subject: Subject) -> tuple[backend.Kernels, ...]:
    """Return the kinds of kernels that can run a model on this machine."""
    return ("torch", "compiled") if subject.name in COMPILED and backend.available() else ("torch",)


@dataclass(frozen=True)
class Sizes:
    batch_size: int = BATCH
    seq_length: int = SEQUENCE

    def split(self) -> Split:
        return split(self.batch_size, self.seq_length, minibatches=20)


# The functions below are called in the measuring process: arguments can be sent to it, but results cannot be sent back.


def ours(subject: Subject, kernels: backend.Kernels, threads: int, sizes: Sizes) -> Callable[[], Any]:
    """Return a call that runs one iteration of charrnn's training with these kernels and this number of threads."""
    return with_kernels(kernels, threads, training(subject.model(), sizes.split()))


def plainly(subject: Subject, way: str, threads: int, sizes: Sizes) -> Callable[[], Any]:
    """Return a call that runs one iteration of a plain network in a hand-written training loop."""
    network = plain(subject.name, V, subject.size, subject.layers)[way]
    return with_kernels("torch", threads, by_hand(network, sizes.split()))


def large_product(threads: int) -> Callable[[], Any]:
    return with_kernels("torch", threads, product())


def with_kernels(kernels: backend.Kernels, threads: int, iteration: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that selects these kernels and threads, and then runs the iteration."""

    def call() -> Any:
        backend.use(kernels, threads)
        return iteration()

    return call


def by_hand(model: nn.Module, minibatches: Split) -> Callable[[], Any]:
    """Return a call that runs one iteration of a hand-written loop with the same data, loss, clipping and optimizer."""
    parameters = list(model.parameters())
    optimizer = torch.optim.RMSprop(parameters, lr=2e-3, alpha=0.95, eps=1e-8)
    state: tuple[Tensor, ...] | None = None
    k = 0

    def iteration() -> float:
        nonlocal state, k
        x, y = minibatches.batch(k % len(minibatches))
        k += 1
        optimizer.zero_grad()
        logits, last = model(x, state)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        (loss * len(x)).backward()
        state = tuple(s.detach() for s in last)
        nn.utils.clip_grad_value_(parameters, 5.0)
        optimizer.step()
        return loss.item()

    return iteration


def bare(model: nn.Module, minibatches: Split) -> Callable[[], Any]:
    """Return a function that does the minimum of any training loop: forward, backward and update, without a state."""
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, eps=1e-8)
    x, y = minibatches.batch(0)

    def iteration() -> None:
        optimizer.zero_grad()
        logits, _ = model(x, None)
        (F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]).backward()
        optimizer.step()

    return iteration
