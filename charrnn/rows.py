"""The rows of a minibatch divided among threads.

Rows are independent, so each thread takes a model through its own share of them, forward and back, and the threads
meet only where the gradients are added up. They wait for one another twice an iteration; torch's own threads divide
every product, and wait at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

State = tuple[Tensor, ...]


def in_parts(model: nn.Module, x: Tensor, state: State | None, parts: int) -> tuple[Tensor, State]:
    """``model(x, state)``, its rows in that many parts of nearly the same size, each on a thread of its own.

    Gradients reach the parameters, once, and not the state. The parts follow from the number of rows and of parts
    alone, and so do the sums. Not for models that draw random numbers: which thread comes first is left to chance.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = _Parts.apply(model, x, state, min(parts, x.shape[1]), *parameters)  # type: ignore[no-untyped-call]
    return outputs[0], tuple(outputs[1:])


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether the model, in the mode it is in, uses torch's random numbers. They stay as they were."""
    device = next(model.parameters()).device
    before = torch.get_rng_state()
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64, device=device), None)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    return not torch.equal(before, after)


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, model: nn.Module, x: Tensor, state: State | None, parts: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        def run(rows: Tensor, state: State | None) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                logits, last = model(rows, state)
            return logits, *last

        rows = x.tensor_split(parts, 1)
        states: Sequence[State | None] = [None] * parts
        if state is not None:
            states = list(zip(*(s.tensor_split(parts, -2) for s in state), strict=True))
        ctx.outputs = list(_threads(parts).map(run, rows, states))
        ctx.parameters = parameters
        ctx.set_materialize_grads(False)
        logits, *last = zip(*ctx.outputs, strict=True)
        return torch.cat(logits, 1), *(torch.cat(s, -2) for s in last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        def run(outputs: tuple[Tensor, ...], gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            asked = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
            tensors, given = zip(*asked, strict=True)
            shares: tuple[Tensor | None, ...] = torch.autograd.grad(tensors, ctx.parameters, given, allow_unused=True)
            return shares

        parts = len(ctx.outputs)
        split = [
            [None] * parts if g is None else g.tensor_split(parts, -2 if k else 1) for k, g in enumerate(gradients)
        ]
        shares = _threads(parts).map(run, ctx.outputs, zip(*split, strict=True))
        return None, None, None, None, *(_sum(share) for share in zip(*shares, strict=True))


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    given = [g for g in gradients if g is not None]
    return reduce(torch.add, given) if given else None


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """That many threads, each of which computes on its own: without torch's threads inside."""
    chosen = torch.get_num_threads()
    together = Barrier(count)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look at the number takes over the last one that any thread set
        together.wait()

    threads = ThreadPoolExecutor(count, "rows")
    list(threads.map(lambda _: start(), range(count)))
    torch.set_num_threads(chosen)
    return threads
